// The buttons of the traits: which one colours the text. Each names its trait's onset, and goes there.

// onTrait(name) selects a trait; onGo(position) moves the cursor
function makeChips(node, { onTrait, onGo }) {
  let shown = null; // {model, choices}

  // The side whose onset a button names: the second where both have one.
  const sideOf = (name) => shown.model.sides.findLast((side) => onsetText(side.onsets?.[name], 0));

  function build(model, traits, choices, colourDot) {
    shown = { model, choices };
    node.replaceChildren(
      ...traits.map((name) => {
        const chip = make("button", "tv-chip");
        chip.type = "button";
        chip.dataset.trait = name;
        chip.setAttribute("aria-pressed", String(name === choices.trait));
        chip.append(colourDot(model.traits.indexOf(name)), make("bdi", "", name));
        const side = sideOf(name);
        const found = side && onsetText(side.onsets[name], movedBy(side, choices));
        if (found) chip.append(make("span", "tv-chip-onset", found));
        return chip;
      })
    );
  }

  node.addEventListener("click", (event) => {
    const name = event.target.closest("[data-trait]")?.dataset.trait;
    if (name === undefined) return;
    onTrait(name);
    const side = sideOf(name);
    const mark = side && onsetMark(side, shown.choices);
    if (mark) onGo(mark.index + side.shift);
    [...node.children].find((other) => other.dataset.trait === name)?.focus(); // built anew
  });

  return { build };
}
