// Reading a payload (persona_core/traces/view/payload.py documents its fields).

function floats(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}

// Positions put the tokens of both sides on one axis on which the replies begin together: token i of a side is at
// position i + shift. In a replay both sides have the same ids, so positions are tokens.
function readPayload(payload) {
  if (payload?.version !== 2 || !(payload.sides?.length >= 1 && payload.sides.length <= 2)) return null;
  const sides = [];
  for (const side of payload.sides) {
    const n = side.tokens?.length;
    if (!(n > 0) || [side.ids, side.roles, side.special].some((list) => list?.length !== n)) return null;
    const arrays = {};
    try {
      for (const key of ["raw", "norms", "null_mean", "null_std"]) arrays[key] = floats(side[key]);
      for (const key of ["log_odds", "max_norm"]) arrays[key] = side[key] ? floats(side[key]) : null; // older ones lack them
    } catch {
      return null; // not base64, or not a whole number of floats
    }
    const cells = payload.traits.length * side.blocks.length;
    const sizes = { raw: cells * n, norms: side.blocks.length * n, null_mean: cells, null_std: cells };
    if (arrays.log_odds) sizes.log_odds = 4 * cells;
    if (arrays.max_norm) sizes.max_norm = side.blocks.length;
    if (Object.entries(sizes).some(([key, size]) => arrays[key].length !== size)) return null;
    sides.push({ ...side, ...arrays, n, cache: new Map() });
  }
  const start = Math.max(...sides.map((side) => side.n_prompt)); // where the replies begin
  for (const side of sides) side.shift = start - side.n_prompt;
  return {
    title: payload.title,
    traits: payload.traits,
    best: payload.best,
    view: payload.view ?? {},
    focus: Number.isInteger(payload.focus) ? payload.focus : null,
    outcome: payload.outcome ?? null,
    sides,
    start,
    length: Math.max(...sides.map((side) => side.shift + side.n)),
    done: sides.every((side) => side.done),
    // The first position at which the sides have different tokens; the length if there is none.
    divergence: sides.length < 2 ? Infinity : divergenceOf(sides[0], sides[1]),
  };
}

function divergenceOf(first, second) {
  const end = Math.max(first.shift + first.n, second.shift + second.n);
  let position = Math.max(first.shift, second.shift);
  while (position < end && first.ids[position - first.shift] === second.ids[position - second.shift]) position++;
  return position;
}

// Whether `next` is the trace of `model`, grown by some tokens.
function continues(model, next) {
  if (!model || model.title !== next.title || model.sides.length !== next.sides.length) return false;
  if (model.traits.join("\n") !== next.traits.join("\n")) return false;
  if (JSON.stringify(model.view) !== JSON.stringify(next.view)) return false;
  return model.sides.every((side, s) => {
    const other = next.sides[s];
    if (other.n < side.n || other.n_prompt !== side.n_prompt || other.name !== side.name) return false;
    if (other.blocks.join() !== side.blocks.join()) return false;
    return side.ids.every((id, i) => id === other.ids[i] && side.roles[i] === other.roles[i]);
  });
}

// How a trace ended, as text.
const ENDS = {
  eos: "complete",
  length: "reached the token limit",
  context: "reached the end of the context",
  thought: "the thought reached its limit; there is no answer",
  stopped: "stopped",
  guard: "stopped by the guard",
  read: "read, not generated",
};

// The facts about a side as one line. A model that reads its own text is named once.
function metaLine(meta) {
  const { reader, writer, ...rest } = meta ?? {};
  const facts = reader === writer ? { model: reader, ...rest } : { reader, writer, ...rest };
  return Object.entries(facts)
    .filter(([, value]) => value !== undefined && value !== null && value !== "" && typeof value !== "object")
    .map(([key, value]) => key + " " + value)
    .join(" · ");
}
