// The timeline: trend lines, lanes and the slider on one axis. Position p is at (p + 0.5) / length of the plot's width
// in all of them. The cursor is a CSS transform over them, so moving it never causes a relayout of the plot.
//
// The slider's track moves the cursor; over chart and lanes the mouse previews, a click pins, and a drag selects a span.

const CHART = { one: 170, each: 122 }; // px: a single plot, each of two

function makeTimeline(part, { onPreview, onPick, onSpan }) {
  const [view, chart, area, track] = ["view", "chart", "area", "track"].map(part);
  const lanes = makeLanes(part("lanes"));
  let plotly = null;
  let scene = null;
  let drawTimer = null;
  let drawCost = 0; // ms of the last drawing: a slow machine draws a stream less often
  let width = 0; // px of the plot area, kept by the resize observer so that scrubbing reads no layout
  let left = 0;
  let colours = null;

  // ---- pointer ----

  function positionAt(event) {
    const box = area.getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left) / box.width) * scene.model.length);
    return Math.min(Math.max(at, 0), scene.model.length - 1);
  }

  let dragging = null; // "track", or the position where a span begins
  function down(event, what) {
    if (!scene || event.button !== 0) return;
    event.preventDefault(); // no text selection; the slider is focused explicitly
    part("thumb").focus({ preventScroll: true });
    dragging = what;
    event.currentTarget.setPointerCapture(event.pointerId);
  }
  track.addEventListener("pointerdown", (event) => {
    down(event, "track");
    if (dragging) onPick(positionAt(event));
  });
  track.addEventListener("pointermove", (event) => dragging === "track" && onPick(positionAt(event)));
  area.addEventListener("pointerdown", (event) => scene && down(event, positionAt(event)));
  area.addEventListener("pointermove", (event) => {
    if (!scene) return;
    const position = positionAt(event);
    if (typeof dragging === "number") {
      if (position !== dragging) onSpan(Math.min(position, dragging), Math.max(position, dragging));
    } else if (event.pointerType === "mouse") onPreview(position);
  });
  area.addEventListener("pointerup", (event) => {
    if (typeof dragging === "number" && positionAt(event) === dragging) onPick(dragging);
  });
  area.addEventListener("pointerleave", () => scene && dragging === null && onPreview(null));
  for (const node of [area, track])
    for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => (dragging = null));

  // ---- drawing ----

  function readColours() {
    const style = getComputedStyle(view);
    const known = new Map(); // repeated lookups took a tenth of the drawing
    const of = (name) => {
      if (!known.has(name)) known.set(name, style.getPropertyValue(name).trim());
      return known.get(name);
    };
    colours = { of, trait: (index) => of("--tv-c" + (index % N_COLOURS)), font: style.fontFamily };
  }

  function drawLanes() {
    const { model, traits, trait, choices, scale } = scene;
    const two = model.sides.length === 2;
    const colourOf = (name) => "var(--tv-c" + (model.traits.indexOf(name) % N_COLOURS) + ")";
    const strips = model.sides.map((side, s) => ({
      key: String(s),
      label: two ? side.name : "",
      rows:
        choices.block === "all"
          ? side.blocks.map((block) => ({
              label: "block " + block,
              colour: colourOf(trait),
              chosen: block === model.best[trait],
              scores: scoresOf(model, side, trait, choices, block),
              shift: side.shift,
            }))
          : traits.map((name) => ({
              label: name,
              colour: colourOf(name),
              chosen: name === trait,
              scores: scoresOf(model, side, name, choices),
              shift: side.shift,
            })),
    }));
    if (two && choices.block !== "all") {
      const [first, second] = model.sides;
      strips.push({
        key: "difference",
        label: second.name + " minus " + first.name + (model.divergence < model.length ? ", pale where the texts differ" : ""),
        rows: traits.map((name) => ({
          label: name, colour: colourOf(name), chosen: name === trait, shift: 0,
          scores: differenceOf(model, name, choices),
        })),
        faint: (position) => position >= model.divergence,
      });
    }
    lanes.show(strips, { width, ratio: window.devicePixelRatio || 1, model, scale, colours });
  }

  function drawChart() {
    drawTimer = null;
    if (!plotly || !scene || width === 0 || scene.traits.length === 0) return;
    const started = performance.now();
    drawTrend(plotly, chart, { ...scene, colours, width, left, right: 10, height: chart.clientHeight });
    drawCost = performance.now() - started;
  }

  // While a reply streams in, spend at most a fifth of the time on drawing; a complete reply is drawn at once.
  function drawChartSoon() {
    if (scene.model.done) clearTimeout(drawTimer);
    else if (drawTimer !== null) return;
    drawTimer = setTimeout(drawChart, scene.model.done ? 0 : Math.min(Math.max(4 * drawCost, 200), 1500));
  }

  function redraw() {
    if (!scene || width === 0) return;
    if (colours === null) readColours();
    chart.style.height = (scene.model.sides.length === 2 ? 2 * (CHART.each + GAP) : CHART.one) + "px";
    drawLanes();
    drawChartSoon();
  }

  function measure() {
    width = area.clientWidth;
    left = area.offsetLeft;
  }
  new ResizeObserver(() => {
    if (area.clientWidth === width && area.offsetLeft === left) return;
    measure();
    redraw();
    placeCursor();
    placeSpan();
  }).observe(area);

  // ---- cursor and span ----

  let cursor = 0;
  const x = (position) => (position / scene.model.length) * width;
  function placeCursor() {
    if (!scene) return;
    part("cursor").style.transform = part("thumb").style.transform = "translateX(" + x(cursor + 0.5).toFixed(2) + "px)";
  }
  let span = null;
  function placeSpan() {
    part("span").hidden = !span || !scene;
    if (!span || !scene) return;
    part("span").style.transform = "translateX(" + x(span[0]).toFixed(2) + "px)";
    part("span").style.width = x(span[1] - span[0] + 1).toFixed(2) + "px";
  }

  return {
    show(next) {
      scene = next;
      if (width === 0) measure();
      redraw();
    },
    // The previous reply's lines must not stay until this one's are drawn.
    clear() {
      plotly?.purge(chart);
    },
    moveTo(position) {
      cursor = position;
      placeCursor();
    },
    showSpan(next) {
      span = next;
      placeSpan();
    },
    restyle() {
      colours = null;
      redraw();
    },
    usePlotly(library) {
      plotly = library;
      view.dataset.chart = "ready";
      drawChart();
    },
    async picture() {
      if (!plotly || !scene) return null;
      return plotly.toImage(chart, { format: "png", width: chart.clientWidth, height: chart.clientHeight, scale: 2 });
    },
  };
}

// Second side minus first, by position: Float64Array [length], NaN if either has no score.
function differenceOf(model, trait, choices) {
  const [first, second] = model.sides;
  const [a, b] = model.sides.map((side) => scoresOf(model, side, trait, choices));
  const out = new Float64Array(model.length).fill(NaN);
  for (let position = 0; position < model.length; position++) {
    const value = b[position - second.shift] - a[position - first.shift];
    out[position] = Number.isNaN(value) ? NaN : rounded(value);
  }
  return out;
}
