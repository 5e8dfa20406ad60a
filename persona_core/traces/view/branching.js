// The buttons that let the model write on from the cursor with the selected trait changed, and what a branch has changed.

const CHANGES = {
  cap: (trait) => "Write on from here, and keep " + trait + " at or below what it scores on neutral text",
  remove: (trait) => "Write on from here without the direction of " + trait + " in the model's state",
  add: (trait) => "Write on from here with more " + trait + ": as far as replies are known to stay coherent, else by 1 standard deviation",
};

// onBranch, onAlternatives: see mountTokenView; where() -> {model, position, side: the one that was clicked, trait}
function makeBranching(part, { onBranch, onAlternatives }, where) {
  const buttons = [...part("branch").querySelectorAll("[data-action]")];

  // A token that the model thought or said, not the end of its turn.
  const branchable = (side, at) => side && at >= side.n_prompt && ["assistant", "thinking"].includes(side.roles[at]);

  // The side to branch from: the one that was clicked, if it has a token there; -1 if none has.
  function sideHere() {
    const { model, position, side } = where();
    const here = (one) => one && branchable(one, position - one.shift);
    return here(model.sides[side]) ? side : model.sides.findIndex(here);
  }

  function branch(action) {
    const { model, position, trait } = where();
    if (model) onBranch?.({ side: sideHere(), at: position - model.start, trait, ...(action && { action }) });
  }
  for (const button of buttons) button.addEventListener("click", () => branch(button.dataset.action));

  // What else could stand at the cursor: asked for at one token, and gone once the cursor is at another.
  let asked = null;
  const here = () => ({ side: sideHere(), at: where().position - where().model.start });
  const same = (one) => one && one.side === here().side && one.at === here().at;
  part("else-ask").addEventListener("click", () => {
    if (!where().model) return;
    asked = here();
    part("else-list").replaceChildren(make("span", "tv-note", "Asking the model …"));
    onAlternatives?.(asked);
  });
  function alternatives(found) {
    if (!where().model || !asked) return;
    part("else-list").replaceChildren(
      ...(same(found) ? found.tokens : []).map(({ id, text, probability, ends }) => {
        const button = make("button", "tv-button");
        button.type = "button";
        const share = probability < 0.001 ? "< 0.1 %" : (100 * probability).toFixed(probability < 0.1 ? 1 : 0) + " %";
        button.append(make("bdi", "tv-else-token", visibleToken(text)), make("span", "tv-else-share", share));
        button.disabled = ends;
        button.title = ends ? "The reply would end here" : "Write on from here with this token";
        button.addEventListener("click", () => onBranch?.({ ...found, tokens: undefined, action: "choose", token: id }));
        return button;
      })
    );
  }

  function show(trait) {
    part("else").hidden = !onAlternatives;
    const { says, detail, warning } = where().model.outcome ?? {};
    part("outcome").hidden = !says;
    part("outcome-says").textContent = says ?? "";
    part("outcome-detail").textContent = detail ?? "";
    part("outcome-warning").textContent = warning ? "⚠ " + warning : "";
    part("outcome-warning").hidden = !warning;
    part("branch").hidden = !onBranch;
    part("branch").setAttribute("aria-label", "Write on from here with " + trait + " changed");
    for (const button of buttons) button.title = CHANGES[button.dataset.action](trait);
  }

  // Disabled, not hidden: the content below must not jump.
  function enable() {
    const { model } = where();
    const off = !model.done || sideHere() < 0;
    for (const button of buttons) button.disabled = off;
    part("else-ask").disabled = off;
    if (asked && (off || !same(asked))) {
      asked = null;
      part("else-list").replaceChildren();
    }
  }

  return { branch, alternatives, show, enable };
}
