// A conversation in which the model speaks several times: each of its turns with the chosen trait's mean, to be gone to.

// The answers of a side, [first, last] token of each. What is between two of them is the user's; a thought belongs to
// neither: statements are about answers.
function turnsOf(side) {
  const turns = [];
  let current = null;
  side.roles.forEach((role, i) => {
    if (role === "assistant" && current) current[1] = i;
    else if (role === "assistant") turns.push((current = [i, i]));
    else if (role === "user" || role === "system") current = null;
  });
  return turns;
}

function makeTurns(node, { onPick }) {
  let turns = []; // {button, s, from, to, position}

  // Buttons stay while a reply grows: one of them may have the focus.
  function show({ model, trait, choices, scale }) {
    const found = model.sides.map(turnsOf);
    node.hidden = !found.some((of) => of.length > 1);
    if (node.hidden) return;
    if (turns.length !== found.flat().length || node.children.length !== found.length) build(found);
    found.flat().forEach(([from, to], k) => Object.assign(turns[k], { from, to, position: from + model.sides[turns[k].s].shift }));
    [...node.children].forEach((row, s) => {
      const name = model.sides.length > 1 ? model.sides[s].name : "Turns";
      row.firstElementChild.textContent = name;
      row.setAttribute("aria-label", name + ": mean " + trait + " of each turn of the model");
    });
    for (const { button, s, from, to, number } of turns) {
      const mean = meanOver(scoresOf(model, model.sides[s], trait, { ...choices, smooth: null }), from, to);
      const share = shareOf(mean, scale);
      button.style.setProperty("--a", Math.abs(share).toFixed(3));
      button.classList.toggle("tv-low", share < 0);
      button.lastElementChild.textContent = scoreText(mean);
      button.title = "Turn " + number + ": mean " + trait + " of its " + (to - from + 1) + " tokens. Go there";
    }
  }

  function build(found) {
    turns = [];
    node.replaceChildren(
      ...found.map((of, s) => {
        const row = make("div", "tv-turns-row");
        row.setAttribute("role", "group");
        row.append(make("bdi", "tv-turns-name"));
        of.forEach((_, k) => {
          const button = make("button", "tv-turn");
          button.type = "button";
          button.append(make("span", "", "Turn " + (k + 1)), make("span"));
          const turn = { button, s, number: k + 1 };
          button.addEventListener("click", () => onPick(turn.position, s));
          turns.push(turn);
          row.append(button);
        });
        return row;
      })
    );
  }

  // The turn under the cursor, on each side.
  function moveTo(position) {
    if (node.hidden) return;
    for (const { button, from, to, position: first } of turns) {
      const here = position >= first && position <= first + to - from;
      if (here !== button.hasAttribute("aria-current")) here ? button.setAttribute("aria-current", "true") : button.removeAttribute("aria-current");
    }
  }

  return { show, moveTo };
}
