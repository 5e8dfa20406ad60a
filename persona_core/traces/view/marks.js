// What is marked in the text: the stretch that two replies share, where they part, the onset of the selected trait, and
// the trait that is highest in each sentence, or differs most between two readings of it. All of it is drawn by CSS: the text stays exactly that of the tokens.

const MIN_SHARED = 3; // tokens: two replies that begin with fewer of the same do not begin alike
const SENTENCES = new Intl.Segmenter(undefined, { granularity: "sentence" }); // making one takes longer than using it
const MIN_TOP = 2; // standard deviations: a sentence below it is like neutral ones, whatever its highest trait
const MIN_MORE = 1; // standard deviations: two readings of a sentence that differ by less hardly do

// Tokens of a side: { shared: [from, to) or null, parts: index or null, onset: {index, text} or null, tops: Map }.
function marksOf(model, side, traits, choices) {
  const own = model.sides.length === 2 && model.divergence > model.start && model.divergence < model.length;
  const to = model.divergence - side.shift;
  const shared = own && to - side.n_prompt >= MIN_SHARED ? [side.n_prompt, Math.min(to, side.n)] : null;
  return {
    shared,
    parts: shared && to < side.n ? to : null,
    onset: onsetMark(side, choices),
    tops: choices.sentences && inDeviations(choices.kind) ? topsOf(model, side, traits, choices) : new Map(),
  };
}

function onsetMark(side, choices) {
  const onset = side.onsets?.[choices.trait];
  const at = onset?.onset ?? onset?.doubles;
  if (!Number.isInteger(at)) return null;
  const moved = movedBy(side, choices);
  const index = side.n_prompt + at + moved;
  return index < side.n ? { index, text: onsetText(onset, moved) } : null;
}

// A score that is shown a token later moves its onset along.
const movedBy = (side, choices) => (choices.alignment === "before") - (side.alignment === "before");

// An onset in a few letters: "47 [44, 50]" where it is timed, else the tokens between which it lies; null for none.
function onsetText(onset, moved) {
  if (!onset) return null;
  const { onset: at, low, high, doubles } = onset;
  const interval = Number.isInteger(low) ? " [" + (low + moved) + ", " + (high + moved) + "]" : "";
  if (Number.isInteger(at)) return onset.timed === false ? "between " + (low + moved) + " and " + (high + moved) : at + moved + interval;
  if (Number.isInteger(doubles)) return "doubles at " + (doubles + moved);
  return onset.answer === "before the reply" ? "from the start" : null;
}

// Last token of a sentence -> its highest trait and that trait's mean score, as text; while the text is coloured by the
// difference of two sides, the trait that differs most and by how much, where both read the whole sentence.
function topsOf(model, side, traits, choices) {
  const tops = new Map();
  const scores = traits.map((trait) => (choices.difference ? sharedDifference : scoresOf)(model, side, trait, choices));
  const size = choices.difference ? Math.abs : (mean) => mean;
  for (const [from, to] of sentencesOf(side)) {
    if (choices.difference && to + side.shift >= model.divergence) break;
    let best = null;
    traits.forEach((trait, t) => {
      const mean = meanOver(scores[t], from, to);
      if (size(mean) > (best ? size(best.mean) : choices.difference ? MIN_MORE : MIN_TOP)) best = { trait, mean };
    });
    if (best) tops.set(to, best.trait + " " + scoreText(best.mean));
  }
  return tops;
}

// [first, last] token of each sentence of the answer. A sentence ends with the token that ends it.
function sentencesOf(side) {
  if (side.sentences) return side.sentences;
  const from = answerStart(side);
  let end = from;
  while (end < side.n && side.roles[end] === "assistant" && !side.special[end]) end++;
  const text = side.tokens.slice(from, end).join("");
  const found = [];
  let [token, read] = [from, 0]; // the next token, and the letters before it
  for (const { index, segment } of SENTENCES.segment(text)) {
    const first = token;
    while (token < end && read < index + segment.trimEnd().length) read += side.tokens[token++].length;
    if (segment.trim() && token > first) found.push([first, token - 1]);
  }
  if (side.done) side.sentences = found;
  return found;
}
