// The timeline's axis: which positions it spans. Position p begins at (p - from) / (to - from) of the plot's width.

const AXIS = { fewest: 12, grow: 32 }; // tokens: the closest zoom; the room for a reply that has just begun
const TICKS_APART = 44; // px

// The whole axis. While a reply is written it has room for twice what there is at most, so that nothing moves at a token.
function wholeAxis(model) {
  if (model.done) return { from: 0, to: model.length };
  let room = AXIS.grow;
  while (room < model.length - model.start) room *= 2;
  return { from: 0, to: model.start + room };
}

// The tokens of the reply whose numbers stand under the chart, about `apart` px from one another or more; the reply begins
// at position `start`.
function axisTicks({ from, to }, start, width, apart) {
  const least = ((to - from) / width) * apart;
  const power = 10 ** Math.max(0, Math.floor(Math.log10(least)));
  const step = power * ([1, 2, 5].find((size) => size * power >= least) ?? 10);
  const ticks = [];
  for (let token = Math.max(0, Math.ceil((from - start) / step) * step); token + start < to; token += step) ticks.push(token);
  return ticks;
}

// The axis with its length changed by `factor`, with `around` where it was.
function zoomed(axis, whole, factor, around) {
  const length = axis.to - axis.from;
  const next = Math.min(Math.max(Math.round(length * factor), AXIS.fewest), whole.to);
  const share = Math.min(Math.max((around + 0.5 - axis.from) / length, 0), 1);
  return moved({ from: 0, to: next }, whole, Math.round(around + 0.5 - share * next));
}

// The axis with its length kept, from `from` on as far as the ends of the whole one allow.
function moved(axis, whole, from) {
  const length = Math.min(axis.to - axis.from, whole.to);
  const start = Math.min(Math.max(from, 0), whole.to - length);
  return { from: start, to: start + length };
}
