// The timeline: lanes, trend lines and the slider on one axis (axis.js). The cursor is a CSS transform over them, so moving
// it redraws nothing, unless it leaves what a zoom shows.
//
// The slider's track moves the cursor; over lanes and chart the mouse previews, a click pins, and a drag selects a span.

function makeTimeline(part, { onPreview, onPick, onSpan }) {
  const [view, chart, area, track] = ["view", "chart", "area", "track"].map(part);
  const lanes = makeLanes(part("lanes"));
  let scene = null;
  let drawn = null; // what the chart shows: chartOf(scene)
  let axis = null;
  let zoomedIn = false; // else the axis is the whole one
  let width = 0; // px of the plot area, kept by the resize observer so that scrubbing reads no layout
  let left = 0;
  let right = 0;
  let colours = null;

  // ---- pointer ----

  function positionAt(event) {
    const box = area.getBoundingClientRect();
    const at = axis.from + Math.floor(((event.clientX - box.left) / box.width) * (axis.to - axis.from));
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
    } else if (event.pointerType === "mouse") {
      onPreview(position);
      const title = lanes.orderAt(event.clientX, event.clientY);
      if (area.title !== title) area.title = title;
    }
  });
  area.addEventListener("pointerup", (event) => {
    if (typeof dragging === "number" && positionAt(event) === dragging) onPick(dragging);
  });
  area.addEventListener("pointerleave", () => scene && dragging === null && onPreview(null));
  for (const node of [area, track])
    for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => (dragging = null));

  area.addEventListener(
    "wheel",
    (event) => {
      if (!scene) return;
      const sideways = event.shiftKey ? event.deltaX || event.deltaY : event.deltaX;
      // With Ctrl or a pinch, as on maps: the wheel alone scrolls the page.
      if (event.ctrlKey || event.metaKey) zoom(event.deltaY < 0 ? 0.8 : 1.25, positionAt(event));
      else if (zoomedIn && Math.abs(sideways) > Math.abs(event.shiftKey ? 0 : event.deltaY))
        look(moved(axis, wholeAxis(scene.model), axis.from + Math.round((sideways / width) * (axis.to - axis.from)) || axis.from + Math.sign(sideways)));
      else return;
      event.preventDefault();
    },
    { passive: false }
  );

  // ---- zoom ----

  // Below 1 it shows fewer tokens, first of all the span that is selected; Infinity shows all of them.
  function zoom(factor, around = cursor) {
    if (!scene) return;
    const whole = wholeAxis(scene.model);
    const within = factor < 1 && span && span[1] - span[0] + 1 < axis.to - axis.from && span[1] - span[0] + 1 >= AXIS.fewest;
    look(within ? { from: span[0], to: span[1] + 1 } : zoomed(axis, whole, factor, around));
  }

  function look(next) {
    axis = next;
    zoomedIn = axis.to - axis.from < wholeAxis(scene.model).to;
    redraw();
    placeCursor();
    placeSpan();
  }

  for (const [name, factor] of [["zoom-in", 0.5], ["zoom-out", 2], ["zoom-all", Infinity]])
    part(name).addEventListener("click", () => zoom(factor));

  function showZoom() {
    const { model } = scene;
    part("zoom-in").disabled = axis.to - axis.from <= AXIS.fewest;
    part("zoom-out").disabled = part("zoom-all").disabled = !zoomedIn;
    const rows = scene.choices.block === "all" ? "One row per block, for " + scene.trait + "." : "One row per trait" + (model.done ? ", the highest mean of " + SUSTAINED + " tokens first." : ".");
    const ticks = model.sides.some((side) => scene.traits.some((name) => onsetAt(model, side, name, scene.choices)));
    const shown = "Shown: " + rangeText(model, axis.from, Math.min(axis.to, model.length) - 1) + ".";
    part("window").textContent = zoomedIn ? shown : rows + (ticks ? " A tick is an onset, the line under it its interval." : "") + ordersText(scene.orders.flat());
    [area.dataset.from, area.dataset.to] = [axis.from, axis.to];
  }

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
    const { model, traits, trait, choices, scale, orders } = scene;
    const two = model.sides.length === 2;
    const all = choices.block === "all";
    // While a reply is written its rows keep their places.
    const order = model.done ? byPeak(model, traits, choices) : traits;
    const colourOf = (name) => "var(--tv-c" + (model.traits.indexOf(name) % N_COLOURS) + ")";
    const row = (side, name, block) => ({
      label: all ? "block " + block : name,
      note: all || !model.done ? "" : scoreText(sustainedPeak(model, side, name, choices)),
      colour: colourOf(name),
      chosen: all ? block === model.best[name] : name === trait,
      scores: scoresOf(model, side, name, choices, block),
      shift: side.shift,
      onset: all && block !== model.best[name] ? null : onsetAt(model, side, name, choices),
    });
    const strips = model.sides.map((side, s) => ({
      key: String(s),
      label: two ? side.name : "",
      orders: orders[s],
      rows: all ? side.blocks.map((block) => row(side, trait, block)) : order.map((name) => row(side, name)),
    }));
    if (two && !all) {
      const [first, second] = model.sides;
      strips.push({
        key: "difference",
        label: second.name + " minus " + first.name + (model.divergence < model.length ? ", pale where the texts differ" : ""),
        rows: order.map((name) => ({
          label: name, note: "", colour: colourOf(name), chosen: name === trait, shift: 0, onset: null,
          scores: differenceOf(model, name, choices),
        })),
        faint: (position) => position >= model.divergence,
      });
    }
    lanes.show(strips, { width, ratio: window.devicePixelRatio || 1, model, axis, scale, colours });
  }

  // The chart on a canvas, at `ratio` pixels per CSS pixel.
  function drawOn(canvas, ratio) {
    canvas.width = Math.round((left + width + right) * ratio);
    canvas.height = Math.round(chartHeight(drawn) * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    drawn.ticks = axisTicks(axis, scene.model.start, width, TICKS_APART);
    drawn.labels = drawChart(pen, drawn, { width, left, right, axis, start: scene.model.start, colours, indexOf: (name) => scene.model.traits.indexOf(name) });
  }

  function redraw() {
    if (!scene || width === 0) return;
    if (colours === null) readColours();
    showZoom();
    drawLanes();
    chart.style.height = chartHeight(drawn) + "px";
    drawOn(chart, window.devicePixelRatio || 1);
    view.dataset.chart = "ready";
  }

  function measure() {
    [width, left] = [area.clientWidth, area.offsetLeft];
    right = area.parentElement.clientWidth - left - width;
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
  const x = (position) => ((position - axis.from) / (axis.to - axis.from)) * width;
  function placeCursor() {
    if (!scene) return;
    part("cursor").style.transform = part("thumb").style.transform = "translateX(" + x(cursor + 0.5).toFixed(2) + "px)";
  }
  let span = null;
  function placeSpan() {
    part("span").hidden = !span || !scene;
    if (!span || !scene) return;
    const [from, to] = [Math.max(span[0], axis.from), Math.max(Math.min(span[1] + 1, axis.to), axis.from)];
    part("span").style.transform = "translateX(" + x(from).toFixed(2) + "px)";
    part("span").style.width = Math.max(x(to) - x(from), 0).toFixed(2) + "px";
  }

  return {
    // `same`: the trace that is shown already, perhaps grown; another one is shown whole.
    show(next, same) {
      const { model, traits, choices } = next;
      // Of a reply that is complete, with a row per trait.
      const ordered = model.done && choices.block !== "all";
      scene = { ...next, orders: model.sides.map((side) => (ordered ? ordersOf(model, side, traits, choices) : [])) };
      drawn = chartOf(scene);
      const whole = wholeAxis(scene.model);
      axis = zoomedIn && same ? moved(axis, whole, axis.from) : whole;
      zoomedIn = axis.to - axis.from < whole.to;
      if (width === 0) measure();
      redraw();
    },
    moveTo(position) {
      cursor = position;
      if (position < axis.from || position >= axis.to) look(moved(axis, wholeAxis(scene.model), position - ((axis.to - axis.from) >> 1)));
      placeCursor();
    },
    showSpan(next) {
      span = next;
      placeSpan();
    },
    zoom,
    restyle() {
      colours = null;
      redraw();
    },
    chart: () => drawn,
    picture() {
      const canvas = document.createElement("canvas");
      drawOn(canvas, 2);
      return canvas;
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
