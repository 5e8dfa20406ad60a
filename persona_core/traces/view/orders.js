// Which trait rises before which: only where both onsets are timed and their intervals do not meet. Drawn as an arc between
// the rows of the heat map, from the earlier onset to the later one.

// [{first, second}] of a side, each {name, at, low, high}; an order that follows from two others is left out.
function ordersOf(model, side, traits, choices) {
  const timed = traits
    .filter((name) => side.onsets?.[name] && side.onsets[name].timed !== false)
    .map((name) => ({ name, kind: side.onsets[name].kind, ...onsetAt(model, side, name, choices) }))
    .filter(({ low }) => Number.isInteger(low))
    .sort((a, b) => a.at - b.at);
  const before = (a, b) => a.kind === b.kind && a.high < b.low;
  return timed.flatMap((first) =>
    timed
      .filter((second) => before(first, second) && !timed.some((third) => before(first, third) && before(third, second)))
      .map((second) => ({ first, second }))
  );
}

// What is not specific to a trait says so.
const orderText = ({ first, second }) => first.name + " before " + second.name + (first.kind === "z" ? " (plain z)" : "");

// The orders as a sentence; of many, the first few.
function ordersText(orders) {
  const texts = [...new Set(orders.map(orderText))];
  if (!texts.length) return "";
  return " An arc: " + texts.slice(0, 3).join(", ") + (texts.length > 3 ? " and " + (texts.length - 3) + " more" : "") + ", intervals apart.";
}

const ARC = { reach: 10 }; // px: how near the mouse has to be, in both directions together

// The arc's path on a strip, from the middle of a row to the middle of another.
function arcOf({ first, second }, x, y) {
  const [from, to] = [{ x: x(first.at + 0.5), y: y(first.name) }, { x: x(second.at + 0.5), y: y(second.name) }];
  const path = new Path2D();
  path.moveTo(from.x, from.y);
  path.quadraticCurveTo(to.x, from.y, to.x, to.y);
  return { path, tip: to, down: Math.sign(to.y - from.y) };
}

function paintArc(pen, { path, tip, down }, ratio, ink, paper) {
  const [half, length] = [3 * ratio, 5 * ratio];
  const head = new Path2D();
  head.moveTo(tip.x, tip.y);
  for (const side of [-half, half]) head.lineTo(tip.x + side, tip.y - down * length);
  head.closePath();
  pen.lineJoin = "round";
  for (const [colour, width] of [[paper, 3.2], [ink, 1.2]]) {
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = width * ratio;
    pen.stroke(path);
    pen.stroke(head);
  }
  pen.fill(head);
}
