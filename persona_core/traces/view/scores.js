// The displayed numbers. The arithmetic is that of Trace.scores, float32 step by step, so that displayed and exported
// numbers equal Python's to the fourth decimal.

const UNITS = {
  specific: "standard deviations: more like this trait than like neutral text or any other trait",
  z: "standard deviations above neutral",
  raw: "residual-stream units",
  cosine: "cosine",
};
const SD_SCALE = 8; // full colour, for every trait, so that pictures can be compared
const inDeviations = (kind) => kind === "specific" || kind === "z"; // 0 is neutral, ±2 its usual range
const SINK = "sink token: its state is far outside the usual range, so it is not scored";

// Four decimals, halves to even, as NumPy rounds.
function rounded(value) {
  const scaled = value * 1e4;
  const low = Math.floor(scaled);
  const rest = scaled - low;
  const whole = rest < 0.5 ? low : rest > 0.5 ? low + 1 : low % 2 === 0 ? low : low + 1;
  return whole / 1e4;
}

function blockOf(model, trait, choices) {
  return typeof choices.block === "number" ? choices.block : model.best[trait];
}

// One trait of one side at every token: Float64Array [n], NaN if there is no score, as at sink tokens.
function scoresOf(model, side, trait, choices, block = blockOf(model, trait, choices)) {
  const { kind, alignment, smooth } = choices;
  const key = [trait, kind, block, alignment, smooth].join("\n");
  let found = side.cache.get(key);
  if (found === undefined) {
    const scores = aligned(unitScores(model, side, trait, kind, block), side.alignment, alignment);
    const sinks = sinksOf(side, block, alignment);
    found = smoothed(scores.map((score, i) => (sinks[i] === 1 ? NaN : score)), smooth);
    for (let i = 0; i < found.length; i++) found[i] = rounded(found[i]);
    side.cache.set(key, found);
  }
  return found;
}

function unitScores(model, side, trait, kind, block) {
  const row = model.traits.indexOf(trait);
  const column = side.blocks.indexOf(block);
  const out = new Float64Array(side.n).fill(NaN);
  if (row < 0 || column < 0) return out;
  if (kind === "specific") return side.log_odds ? specificScores(model, side, row, column) : out;
  const cell = row * side.blocks.length + column;
  const [mean, std] = [side.null_mean[cell], side.null_std[cell]];
  for (let i = 0; i < side.n; i++) {
    const raw = side.raw[cell * side.n + i];
    if (kind === "raw") out[i] = raw;
    else if (kind === "z") out[i] = std > 0 ? Math.fround(Math.fround(raw - mean) / std) : NaN;
    else {
      const norm = side.norms[column * side.n + i];
      out[i] = norm === 0 ? 0 : Math.fround(raw / norm);
    }
  }
  return out;
}

// The specific scores of trait `row`, as persona_core/traces/specific.py has it: the log odds of the
// trait against neutral text and all other traits, in standard deviations over neutral tokens.
function specificScores(model, side, row, column) {
  const out = new Float64Array(side.n).fill(NaN);
  const cells = model.traits.map((_, trait) => trait * side.blocks.length + column);
  const part = (index, cell) => side.log_odds[index * model.traits.length * side.blocks.length + cell];
  const [mean, std] = [part(2, cells[row]), part(3, cells[row])];
  if (!(std > 0)) return out;
  const [slopes, offsets] = [0, 1].map((index) => cells.map((cell) => part(index, cell)));
  const rest = new Float64Array(cells.length); // log odds of the other traits, and 0 for neutral text
  for (let i = 0; i < side.n; i++) {
    let own = 0;
    let most = 0;
    cells.forEach((cell, trait) => {
      const odds = slopes[trait] * side.raw[cell * side.n + i] + offsets[trait];
      if (trait === row) own = odds;
      rest[trait] = trait === row ? 0 : odds;
      most = Math.max(most, rest[trait]);
    });
    let sum = 0;
    for (const odds of rest) sum += Math.exp(odds - most);
    out[i] = Math.fround((own - most - Math.log(sum) - mean) / std);
  }
  return out;
}

// Whether the state that a score is taken from is a sink token's: Float64Array [n] of 0 and 1.
function sinksOf(side, block, alignment) {
  const key = ["sinks", block, alignment].join("\n");
  let found = side.cache.get(key);
  if (found === undefined) {
    const column = side.blocks.indexOf(block);
    const limit = column < 0 || !side.max_norm ? Infinity : side.max_norm[column];
    const flags = new Float64Array(side.n).map((_, i) => Number(side.norms[column * side.n + i] > limit));
    found = aligned(flags, side.alignment, alignment);
    side.cache.set(key, found);
  }
  return found;
}

// "at": the state after reading the token; "before": the state that chose it.
function aligned(scores, stored, wanted) {
  if (stored === wanted) return scores;
  const moved = new Float64Array(scores.length).fill(NaN);
  if (wanted === "before") moved.set(scores.subarray(0, -1), 1);
  else moved.set(scores.subarray(1), 0);
  return moved;
}

// Causal mean of each score and up to `window - 1` before it: later tokens never change earlier ones.
function smoothed(scores, window) {
  if (!(window > 1)) return scores;
  return scores.map((score, i) => {
    if (Number.isNaN(score)) return NaN;
    let [sum, known] = [0, 0];
    for (let j = Math.max(0, i - window + 1); j <= i; j++) if (!Number.isNaN(scores[j])) [sum, known] = [sum + scores[j], known + 1];
    return Math.fround(sum / known);
  });
}

// Mean over the tokens of a span that have scores.
function meanOver(scores, from, to) {
  let [sum, count] = [0, 0];
  for (let i = Math.max(from, 0); i <= Math.min(to, scores.length - 1); i++)
    if (!Number.isNaN(scores[i])) [sum, count] = [sum + scores[i], count + 1];
  return count ? rounded(sum / count) : NaN;
}

// Where a side's answer begins: behind the prompt and a thought.
function answerStart(side) {
  const at = side.roles.indexOf("assistant", side.n_prompt);
  return side.roles.includes("thinking") && at >= 0 ? at : side.n_prompt;
}

const SUSTAINED = 5; // tokens

// The highest mean of five consecutive scored tokens of a side's reply: a state, rather than one token. NaN if it has none.
function sustainedPeak(model, side, trait, choices) {
  const scores = scoresOf(model, side, trait, choices);
  const known = [];
  for (let i = side.n_prompt; i < side.n; i++) if (!side.special[i] && !Number.isNaN(scores[i])) known.push(scores[i]);
  const length = Math.min(SUSTAINED, known.length);
  let [high, sum] = [NaN, 0];
  known.forEach((score, i) => {
    sum += score - (i >= length ? known[i - length] : 0);
    if (i >= length - 1 && !(sum / length <= high)) high = sum / length;
  });
  return high;
}

// Traits from the one that rises highest, on either side, to the one that rises least.
function byPeak(model, traits, choices) {
  const best = (trait) => Math.max(...model.sides.map((side) => sustainedPeak(model, side, trait, choices)).filter(Number.isFinite));
  const peaks = new Map(traits.map((trait) => [trait, best(trait)])); // -Infinity without any score
  return [...traits].sort((a, b) => peaks.get(b) - peaks.get(a) || 0); // -Infinity less itself is NaN
}

// The score at full colour.
function scaleOf(model, choices, traits) {
  if (inDeviations(choices.kind) && choices.scale === "fixed") return SD_SCALE;
  let most = 0;
  for (const side of model.sides) {
    // Special and template tokens can be extreme; the reply decides.
    const from = side.n > side.n_prompt ? side.n_prompt : 0;
    for (const trait of traits) {
      const scores = scoresOf(model, side, trait, choices);
      for (let i = from; i < side.n; i++) if (!side.special[i] && Math.abs(scores[i]) > most) most = Math.abs(scores[i]);
    }
  }
  return roundedUp(most);
}

// To one digit: 0.0234 becomes 0.03.
function roundedUp(most) {
  if (most === 0) return 1;
  const step = 10 ** Math.floor(Math.log10(most));
  return Number((Math.ceil(most / step - 1e-9) * step).toPrecision(6));
}

// The position of the highest score in the reply.
function peakOf(model, trait, choices) {
  let best = null;
  model.sides.forEach((side) => {
    const scores = scoresOf(model, side, trait, choices);
    for (let i = answerStart(side); i < side.n; i++)
      if (!side.special[i] && scores[i] > (best?.score ?? -Infinity)) best = { score: scores[i], position: i + side.shift };
  });
  return best?.position ?? model.length - 1;
}

// The trait with the highest mean over the reply; with two sides, the largest difference of means.
function strongestTrait(model, choices, traits) {
  let best = null;
  for (const trait of traits) {
    const means = model.sides.map((side) => meanOver(scoresOf(model, side, trait, choices), answerStart(side), side.n - 1));
    const weight = means.length < 2 ? means[0] : Math.abs(means[1] - means[0]);
    if (weight > (best?.weight ?? -Infinity)) best = { trait, weight };
  }
  return best?.trait ?? null;
}

// The second side minus the first at each token of a side: Float64Array [n], NaN where the texts have parted.
function sharedDifference(model, side, trait, choices) {
  const all = differenceOf(model, trait, choices);
  return new Float64Array(side.n).map((_, i) => (i + side.shift < model.divergence ? all[i + side.shift] : NaN));
}
