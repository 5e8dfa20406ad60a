// The trend lines: one plot per side on one canvas, on the timeline's axis. chartOf() says what is drawn, as plain data;
// drawChart() draws it. Text on a canvas is inert, whatever a trait is named.
//
// No chart library: uPlot (51 kB) would draw axes and paths, and band, onset, names and marks would still be drawn here, in
// its hooks; its axis would have to be held to that of the lanes.

const N_COLOURS = 8; // --tv-c0 … --tv-c7; further traits repeat the colours with dashes
const PLOT = { one: 150, each: 116, gap: 20, edge: 6, label: 13, axis: 14 }; // px; the gap above each of two plots has its name

// What the chart shows of a scene {model, traits (shown), trait, choices}: the chosen trait and those that rise
// above the neutral band, or all of them.
// -> {range: {low, high, step}, window, traits: [name], left_out,
//     sides: [{name, start, band, onset: {at, low, high} | null, lines: [{trait, chosen, from, values, clipped}]}]}
// Positions are those of the axis; `from` is that of a line's first value, `clipped` has those beyond the range.
function chartOf({ model, traits, trait, choices }) {
  const drawn = traits.filter((name) => choices.lines === "all" || name === trait || risesAbove(model, name, choices));
  const order = [...drawn].sort((a, b) => (a === trait) - (b === trait)); // the chosen one on top
  const window = lineWindow(model, choices);
  const valuesOf = (side, name) => scoresOf(model, side, name, { ...choices, smooth: window });
  const range = rangeOf(model, drawn, trait, choices, valuesOf);
  const beyond = (value) => value > range.high || value < range.low;
  return {
    range,
    window,
    traits: drawn,
    left_out: traits.length - drawn.length,
    sides: model.sides.map((side) => ({
      name: side.name,
      start: side.n_prompt > 0 && side.n_prompt < side.n ? model.start : null,
      band: nullBand(model, side, trait, choices),
      onset: onsetAt(model, side, trait, choices),
      lines: order.map((name) => {
        const values = valuesOf(side, name);
        const clipped = [];
        values.forEach((value, i) => beyond(value) && clipped.push(i + side.shift));
        return { trait: name, chosen: name === trait, from: side.shift, values, clipped };
      }),
    })),
  };
}

// Both ends of the lines' values in the replies, at whole steps: a stream changes the scale rarely. Special and template
// tokens are extreme in many models, and so is a prompt: their lines are cut off.
function rangeOf(model, drawn, trait, choices, valuesOf) {
  let [low, high] = inDeviations(choices.kind) ? [-2.5, 4] : [0, 0];
  for (const side of model.sides) {
    const band = nullBand(model, side, trait, choices);
    if (band) [low, high] = [Math.min(low, band[0]), Math.max(high, band[1])];
    for (const name of drawn) {
      const values = valuesOf(side, name);
      for (let i = side.n > side.n_prompt ? side.n_prompt : 0; i < side.n; i++) {
        if (side.special[i] || side.roles[i] === "template") continue;
        if (values[i] < low) low = values[i]; // NaN moves neither end
        if (values[i] > high) high = values[i];
      }
    }
  }
  if (low === high) [low, high] = [low - 1, high + 1];
  const power = 10 ** Math.floor(Math.log10((high - low) / 4));
  const step = power * [1, 2, 5, 10].find((size) => size * power >= (high - low) / 4);
  const half = step / 2; // the ends fall on ticks or between two
  return { low: Math.floor(low / half) * half, high: Math.ceil(high / half) * half, step };
}

// Where most neutral tokens of this model lie: within two standard deviations. Cosines have no null.
function nullBand(model, side, trait, choices) {
  if (inDeviations(choices.kind)) return [-2, 2];
  if (choices.kind !== "raw") return null;
  const column = side.blocks.indexOf(blockOf(model, trait, choices));
  const cell = model.traits.indexOf(trait) * side.blocks.length + column;
  const [mean, std] = [side.null_mean[cell], side.null_std[cell]];
  return column >= 0 && std > 0 ? [mean - 2 * std, mean + 2 * std] : null;
}

// Whether a trait rises above the band on a side, by the mean of a few consecutive tokens: single tokens of neutral replies
// do, now and then. (That it falls below it says little: specific scores of all others fall where one rises.)
function risesAbove(model, trait, choices) {
  return model.sides.some((side) => {
    const band = nullBand(model, side, trait, choices);
    return band === null || sustainedPeak(model, side, trait, choices) > band[1];
  });
}

// The position at which a trait rises, and its interval; where it is high from the start and doubles, `low` and `high`
// are null.
function onsetAt(model, side, trait, choices) {
  const onset = side.onsets?.[trait];
  const tick = onset?.onset ?? onset?.doubles;
  if (!Number.isInteger(tick)) return null;
  const first = model.start + movedBy(side, choices);
  if (tick !== onset.onset) return { at: first + tick, low: null, high: null };
  return { at: first + tick, low: first + (onset.low ?? tick), high: first + (onset.high ?? tick) };
}

const chartHeight = (chart) => (chart.sides.length > 1 ? chart.sides.length * (PLOT.each + PLOT.gap) : PLOT.one) + PLOT.axis;

// Returns where the labels of each side are: [[{trait, y}]], in px.
// place: {width and left of the plot area, right: the room behind it, axis: {from, to}, start: where the replies begin,
// indexOf(trait), colours}
function drawChart(pen, chart, place) {
  const { width, left, right, axis, start, indexOf, colours } = place;
  const { of } = colours;
  const { low, high, step } = chart.range;
  const x = (position) => left + ((position - axis.from) / (axis.to - axis.from)) * width; // of a token's left edge
  const size = chart.sides.length > 1 ? PLOT.each : PLOT.one;
  pen.clearRect(0, 0, left + width + right, chartHeight(chart));
  pen.textBaseline = "middle";
  pen.lineJoin = pen.lineCap = "round";

  const foot = chartHeight(chart) - PLOT.axis;
  pen.textAlign = "center";
  for (const token of chart.ticks) {
    const middle = x(token + start + 0.5);
    bar(middle - 0.5, foot - PLOT.edge, 1, 4, of("--tv-line-strong"));
    write(String(token), middle, foot + PLOT.label / 2 - 1, { font: "10.5px", colour: of("--tv-muted"), room: TICKS_APART });
  }
  pen.textAlign = "start";

  return chart.sides.map((side, s) => {
    const top = (chart.sides.length > 1 ? s * (PLOT.each + PLOT.gap) + PLOT.gap : 0) + PLOT.edge;
    const bottom = top + size - 2 * PLOT.edge;
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    if (chart.sides.length > 1) write(side.name, left, top - PLOT.edge - 9, { font: "600 12px", colour: of("--tv-ink"), room: width });

    for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9; tick += step) {
      bar(left, y(tick) - 0.5, width, 1, of(Math.abs(tick) < 1e-9 ? "--tv-line-strong" : "--tv-line"));
      pen.textAlign = "end";
      write(tickText(tick), left - 6, y(tick), { colour: of("--tv-muted"), room: left - 8 });
      pen.textAlign = "start";
    }

    pen.save();
    pen.beginPath();
    pen.rect(left, top - PLOT.edge, width, bottom - top + 2 * PLOT.edge);
    pen.clip();
    if (side.band) bar(left, y(side.band[1]), width, y(side.band[0]) - y(side.band[1]), of("--tv-band"));
    if (side.onset?.low !== null && side.onset) bar(x(side.onset.low), top, x(side.onset.high + 1) - x(side.onset.low), bottom - top, of("--tv-onset"));
    if (side.start !== null) {
      pen.setLineDash([1, 3]);
      stroke(of("--tv-muted"), 1, () => [pen.moveTo(x(side.start), top), pen.lineTo(x(side.start), bottom)]);
      pen.setLineDash([]);
    }
    for (const line of side.lines) drawLine(line, y, top, bottom);
    if (side.onset) bar(x(side.onset.at + 0.5) - 1, top, 2, (bottom - top) * 0.14, of("--tv-ink"));
    pen.restore();
    return drawLabels(side, y, top, bottom).map(({ trait, y }) => ({ trait, y }));
  });

  function drawLine({ trait, chosen, from, values, clipped }, y, top, bottom) {
    const index = indexOf(trait);
    const colour = colours.trait(index);
    pen.globalAlpha = chosen ? 1 : 0.75;
    if (index >= N_COLOURS) pen.setLineDash([1, 3]);
    stroke(colour, chosen ? 2.4 : 1.3, () => {
      let drawing = false;
      const end = Math.min(values.length, axis.to + 1 - from);
      for (let i = Math.max(0, axis.from - 1 - from); i < end; i++) {
        if (Number.isNaN(values[i])) {
          drawing = false; // a gap
          continue;
        }
        const [at, height] = [x(i + from + 0.5), y(values[i])];
        if (!drawing) pen.moveTo(at, height); // a token between two gaps is a dot
        pen.lineTo(at, height);
        drawing = true;
      }
    });
    pen.setLineDash([]);
    pen.fillStyle = colour;
    for (const position of clipped) {
      const above = values[position - from] > high;
      const [at, tip] = [x(position + 0.5), above ? top - PLOT.edge + 0.5 : bottom + PLOT.edge - 0.5];
      pen.beginPath();
      pen.moveTo(at, tip);
      for (const side of [-3, 3]) pen.lineTo(at + side, tip + (above ? 5 : -5));
      pen.fill();
    }
    pen.globalAlpha = 1;
  }

  // Each line's name at its end, none over another; as many as there is room for, the chosen trait first.
  function drawLabels({ lines }, y, top, bottom) {
    const most = Math.floor((bottom - top) / PLOT.label) + 1;
    const labels = [];
    for (const { trait, chosen, from, values } of [...lines].reverse()) {
      let end = Math.min(values.length, axis.to - from) - 1;
      while (end >= 0 && Number.isNaN(values[end])) end--;
      if (end + from >= axis.from && labels.length < most)
        labels.push({ trait, chosen, x: x(end + from + 1), y: Math.min(Math.max(y(values[end]), top), bottom) });
    }
    spread(labels, top, bottom);
    for (const label of labels) {
      const font = (label.chosen ? "600 " : "") + "11px";
      const full = left + width + right - 2;
      const text = fitted(label.trait, { font, room: 130 });
      const at = Math.min(label.x + 5, full - pen.measureText(text).width); // over the lines, if there is no room behind them
      write(text, at, label.y, { font, colour: colours.trait(indexOf(label.trait)), halo: of("--tv-paper"), room: 130 });
    }
    return labels;
  }

  function bar(x, y, width, height, colour) {
    pen.fillStyle = colour;
    pen.fillRect(x, y, width, height);
  }

  function stroke(colour, width, path) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    path();
    pen.stroke();
  }

  function fitted(text, { font = "11px", room }) {
    pen.font = font + " " + colours.font;
    return fittedText(pen, text, room);
  }

  function write(text, x, y, { font, colour, halo, room }) {
    const shown = fitted(text, { font, room });
    if (halo) {
      pen.strokeStyle = halo;
      pen.lineWidth = 4;
      pen.strokeText(shown, x, y);
    }
    pen.fillStyle = colour;
    pen.fillText(shown, x, y);
  }
}

// Moves labels {y} apart, within the plot.
function spread(labels, top, bottom) {
  const sorted = [...labels].sort((a, b) => a.y - b.y);
  let free = top;
  for (const label of sorted) {
    label.y = Math.max(label.y, free);
    free = label.y + PLOT.label;
  }
  free = bottom;
  for (const label of sorted.reverse()) {
    label.y = Math.min(label.y, free);
    free = label.y - PLOT.label;
  }
}

const tickText = (value) => String(Number(value.toPrecision(6))).replace("-", "−");
