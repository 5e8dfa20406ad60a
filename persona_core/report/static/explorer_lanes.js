// A lane of the explorer: the scores of one reply, a column per token, on an axis as long as the longest reply.

const LANE = { height: 16 }; // px

const laneWidth = (canvas) => Math.round(canvas.clientWidth * (window.devicePixelRatio || 1));

// length: tokens of the reply; found: of the selected trait, {scores, onset}, if it was read; n: tokens of the longest reply
function drawLane(canvas, length, found, { n, step, scale, style }) {
  const of = (name) => style.getPropertyValue(name).trim();
  const ratio = window.devicePixelRatio || 1;
  const width = (canvas.width = laneWidth(canvas));
  canvas.height = Math.round(LANE.height * ratio);
  const pen = canvas.getContext("2d");
  const scores = found ? Int8Array.from(atob(found.scores), (c) => c.charCodeAt(0)) : [];
  const x = (token) => Math.round((token / n) * width);
  pen.fillStyle = of("--ex-ground");
  pen.fillRect(0, 0, x(length), canvas.height);
  for (let i = 0; i < scores.length; i++) {
    pen.globalAlpha = Math.min(Math.abs(scores[i] * step) / scale, 1);
    pen.fillStyle = of(scores[i] < 0 ? "--ex-low" : "--ex-high");
    pen.fillRect(x(i), 0, x(i + 1) - x(i), canvas.height);
  }
  pen.globalAlpha = 1;
  const tick = found?.onset?.onset ?? found?.onset?.doubles;
  if (!Number.isInteger(tick)) return;
  pen.fillStyle = of("--ex-ink");
  const { low, high } = found.onset;
  pen.fillRect(x(tick), 0, 2 * ratio, canvas.height);
  if (low !== null && high !== null) pen.fillRect(x(low), canvas.height - 2 * ratio, Math.max(x(high + 1) - x(low), 1), 2 * ratio);
}

// The token of the reply under the mouse, from 0; undefined beside it.
function tokenOfLane(canvas, run, n, clientX) {
  const box = canvas.getBoundingClientRect();
  const column = Math.floor(((clientX - box.left) / box.width) * n);
  return column >= 0 && column < run.n ? run.start + column : undefined;
}
