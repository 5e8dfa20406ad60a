// Questions about payloads (persona_core/token_view/payload.py says what is in one).

// Whether `next` is the trace of `payload`, grown by some tokens.
function continues(payload, next) {
  if (!payload || next.ids.length < payload.ids.length || next.n_prompt !== payload.n_prompt) return false;
  for (const key of ["kind", "alignment", "title"]) if (next[key] !== payload[key]) return false;
  if (next.traits.join("\n") !== payload.traits.join("\n")) return false;
  return payload.ids.every((id, i) => id === next.ids[i] && payload.roles[i] === next.roles[i]);
}

// Whether the view can show it.
function fits(next) {
  const n = next?.tokens?.length;
  return (
    n > 0 &&
    [next.ids, next.roles, next.special].every((list) => list?.length === n) &&
    next.traits.every((name) => next.scores[name]?.length === n)
  );
}

// A trace that arrives whole opens on its strongest moment rather than on its last token.
function peakOf(payload, name) {
  const scores = payload.scores[name] ?? [];
  let best = -1;
  for (let i = payload.n_prompt; i < scores.length; i++)
    if (!payload.special[i] && (best < 0 || (scores[i] ?? -Infinity) > (scores[best] ?? -Infinity))) best = i;
  return best < 0 ? scores.length - 1 : best;
}

// The trait with the highest mean over the reply.
function mostTelling(payload) {
  let best = null;
  let bestMean = -Infinity;
  for (const name of payload.traits) {
    const reply = payload.scores[name].slice(payload.n_prompt).filter((score) => score !== null);
    const mean = reply.reduce((sum, score) => sum + score, 0) / reply.length;
    if (mean > bestMean) [best, bestMean] = [name, mean];
  }
  return best;
}

// How a trace ended, in words.
const ENDS = {
  eos: "complete",
  length: "reached the token limit",
  context: "reached the end of the context",
  stopped: "stopped",
  read: "read, not generated",
};

// The facts under the title as one line. A model that reads what it wrote itself is named once.
function metaLine(meta) {
  const { reader, writer, ...rest } = meta ?? {};
  const facts = reader === writer ? { model: reader, ...rest } : { reader, writer, ...rest };
  return Object.entries(facts)
    .filter(([, value]) => value !== undefined && value !== null && value !== "" && typeof value !== "object")
    .map(([key, value]) => key + " " + value)
    .join(" · ");
}
