// The text beside the bars: which token the cursor is at, its role and id, whether it is scored, the unit of the scores;
// and what screen readers hear of it.

function makeReadout(part) {
  // model, trait, choices; position or span; texts and values (trait -> score) for each side; pinned, quiet
  function show({ model, trait, choices, position, span, texts, values, pinned, quiet }) {
    const where = capitalized(span ? rangeText(model, ...span) + " · means" : positionText(model, position));
    const facts = span ? "" : factsAt(model, position, trait, choices);
    const state = choices.alignment === "before" ? "in the state that chose it" : "after reading it";
    part("position").textContent = where + (facts ? "\n" + facts : "");
    part("position").title = "Counted from 0, as in onsets and in the API; the reply has " + (model.length - model.start) + " tokens";
    // One line, so that the slider stays above the fold; the unit is in the legend too.
    part("note").textContent = trait + ", " + state + (choices.smooth > 1 ? ", mean of the last " + choices.smooth + " tokens" : "");
    part("note").title = UNITS[choices.kind];
    part("pin").textContent = span ? "Clear" : pinned ? (model.done ? "Unpin" : "Follow") : "Pin";
    part("pin").setAttribute("aria-pressed", String(pinned));
    const scores = model.sides
      .map((side, s) => (model.sides.length > 1 ? side.name + " " : "") + texts[s] + " " + scoreText(values[s](trait)))
      .join(", ") + (facts.endsWith(" · sink") ? ", " + SINK : "");
    const thumb = part("thumb");
    thumb.setAttribute("aria-valuemin", replyToken(model, 0));
    thumb.setAttribute("aria-valuemax", replyToken(model, model.length - 1));
    thumb.setAttribute("aria-valuenow", replyToken(model, position));
    thumb.setAttribute("aria-valuetext", where + ", " + trait + ": " + scores);
    if (!quiet) announce(where + ": " + trait + " " + scores);
  }

  // Role and id of the token, of the first side that has one at that position, and whether it is a sink token.
  function factsAt(model, position, trait, choices) {
    const side = model.sides.find((one) => one.tokens[position - one.shift] !== undefined);
    if (!side) return "";
    const i = position - side.shift;
    const sink = sinksOf(side, blockOf(model, trait, choices), choices.alignment)[i] === 1;
    const facts = side.roles[i] + (side.special[i] ? " · special" : "") + (side.ids[i] < 0 ? "" : " · id " + side.ids[i]);
    return facts + (sink ? " · sink" : ""); // one word: a third line would move what is below it
  }

  // Screen readers hear where a movement ended, not every token of a drag.
  let timer = null;
  function announce(sentence) {
    clearTimeout(timer);
    timer = setTimeout(() => (part("live").textContent = sentence), 300);
  }

  return { show, announce };
}
