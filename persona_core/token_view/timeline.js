// The timeline: a Plotly line for each trait, the role lane, the heat strip and the slider, on one x axis.
// Token i lies at (i + 0.5) / n of the plot's width in all four. The cursor is a CSS transform over the chart,
// so moving it never asks Plotly for a relayout.

const PLOT_MARGIN = { l: 40, r: 10, t: 10, b: 6 }; // px; --tv-plot-left and --tv-plot-right in colours.css agree
const N_COLOURS = 8; // --tv-c0 … --tv-c7; further traits repeat the colours with dashes

// Load plotly.js once a page and keep a private reference: Gradio brings a different version of its own.
function loadPlotly(url) {
  const key = Symbol.for("persona_core.plotly");
  if (!window[key]) {
    window[key] = new Promise((resolve, reject) => {
      const before = window.Plotly;
      const script = document.createElement("script");
      script.src = url;
      script.onload = () => {
        const mine = window.Plotly;
        if (before === undefined) delete window.Plotly;
        else window.Plotly = before;
        resolve(mine);
      };
      script.onerror = () => reject(new Error("plotly.js did not load"));
      document.head.append(script);
    });
  }
  return window[key];
}

function makeTimeline(part, { onPreview, onPick }) {
  const chart = part("chart");
  const heat = part("heat");
  const scrub = part("scrub");
  const view = part("view");
  let plotly = null;
  let payload = null;
  let trait = null;
  let drawTimer = null;
  let drawCost = 0; // ms of the last chart drawing: a slow machine draws the stream less often
  let width = 0; // px of the plot area, kept by the resize observer so that scrubbing reads no layout

  function tokenAt(event) {
    const box = scrub.getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left) / box.width) * payload.tokens.length);
    return Math.min(Math.max(at, 0), payload.tokens.length - 1);
  }

  let dragging = false;
  scrub.addEventListener("pointerdown", (event) => {
    if (!payload || event.button !== 0) return;
    event.preventDefault(); // no text selection; focus goes to the slider by hand
    part("thumb").focus({ preventScroll: true });
    dragging = true;
    scrub.setPointerCapture(event.pointerId);
    onPick(tokenAt(event));
  });
  scrub.addEventListener("pointermove", (event) => {
    if (!payload) return;
    if (dragging) onPick(tokenAt(event));
    else if (event.pointerType === "mouse") onPreview(tokenAt(event));
  });
  const release = () => (dragging = false);
  scrub.addEventListener("pointerup", release);
  scrub.addEventListener("pointercancel", release);
  scrub.addEventListener("pointerleave", () => {
    if (payload && !dragging) onPreview(null);
  });

  function colours() {
    const style = getComputedStyle(view);
    const of = (name) => style.getPropertyValue(name).trim();
    return {
      of,
      trait: (index) => of("--tv-c" + (index % N_COLOURS)),
      font: style.fontFamily,
    };
  }

  function drawHeat() {
    if (!payload || width === 0) return;
    const ratio = window.devicePixelRatio || 1;
    const height = heat.clientHeight;
    heat.width = Math.round(width * ratio);
    heat.height = Math.round(height * ratio);
    const pen = heat.getContext("2d");
    const { of } = colours();
    const [high, low] = [of("--tv-high"), of("--tv-low")];
    const scores = payload.scores[trait];
    const n = scores.length;
    // One column a token, or the strongest token of each pixel where there are more tokens than pixels: a spike is
    // never averaged away.
    const columns = Math.min(n, heat.width);
    for (let column = 0; column < columns; column++) {
      const from = Math.floor((column * n) / columns);
      const to = Math.max(from + 1, Math.floor(((column + 1) * n) / columns));
      let best = 0;
      for (let i = from; i < to; i++) if (Math.abs(scores[i] ?? 0) > Math.abs(best)) best = scores[i];
      const left = Math.round((column * heat.width) / columns);
      const right = Math.round(((column + 1) * heat.width) / columns);
      pen.globalAlpha = Math.min(Math.abs(best) / payload.scale, 1);
      pen.fillStyle = best < 0 ? low : high;
      pen.fillRect(left, 0, right - left, heat.height);
    }
  }

  function drawRoles() {
    const lane = part("roles");
    const n = payload.tokens.length;
    let from = 0;
    const runs = [];
    for (let i = 1; i <= n; i++) {
      if (i === n || payload.roles[i] !== payload.roles[from]) {
        runs.push([payload.roles[from], from, i]);
        from = i;
      }
    }
    lane.replaceChildren(
      ...runs.map(([role, start, end]) => {
        // A label that does not fit is left out: its start alone would be a riddle.
        const fitsLabel = role !== "template" && ((end - start) / n) * width > 8 + 6.5 * role.length;
        const run = make("div", "tv-run", fitsLabel ? role : "");
        run.dataset.role = role;
        run.style.left = (100 * start) / n + "%";
        run.style.width = (100 * (end - start)) / n + "%";
        return run;
      })
    );
  }

  function drawChart() {
    drawTimer = null;
    if (!plotly || !payload || width === 0 || payload.traits.length === 0) return;
    const started = performance.now();
    const { of, trait: traitColour, font } = colours();
    const n = payload.tokens.length;
    let [low, high] = [-payload.scale / 2, payload.scale];
    for (const name of payload.traits)
      for (const score of payload.scores[name]) {
        if (score < low) low = score; // a null score compares as 0 and moves neither end
        if (score > high) high = score;
      }
    const room = (high - low) * 0.04;
    const order = payload.traits.map((name, index) => ({ name, index })).sort((a, b) => (a.name === trait) - (b.name === trait));
    const lines = order.map(({ name, index }) => ({
      type: "scatter",
      mode: "lines",
      x0: 0,
      dx: 1,
      y: payload.scores[name],
      opacity: name === trait ? 1 : 0.75,
      line: {
        color: traitColour(index),
        width: name === trait ? 2.4 : 1.2,
        dash: index < N_COLOURS ? "solid" : "dot",
        simplify: true,
      },
    }));
    const axis = { fixedrange: true, zeroline: false, showgrid: false, ticks: "", color: of("--tv-muted") };
    const shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: of("--tv-line-strong"), width: 1 } }];
    if (payload.kind === "z")
      // Where this model's neutral talk mostly lies: two standard deviations to each side.
      shapes.unshift({
        type: "rect", xref: "paper", x0: 0, x1: 1, y0: -2, y1: 2, layer: "below",
        fillcolor: of("--tv-band"), line: { width: 0 },
      });
    if (payload.n_prompt > 0 && payload.n_prompt < n)
      shapes.push({
        type: "line", yref: "paper", x0: payload.n_prompt - 0.5, x1: payload.n_prompt - 0.5, y0: 0, y1: 1,
        line: { color: of("--tv-muted"), width: 1, dash: "dot" },
      });
    plotly.react(
      chart,
      lines,
      {
        width: width + PLOT_MARGIN.l + PLOT_MARGIN.r,
        height: chart.clientHeight,
        margin: { ...PLOT_MARGIN, pad: 0 },
        showlegend: false,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: font, size: 11, color: of("--tv-muted") },
        xaxis: { ...axis, range: [-0.5, n - 0.5], showticklabels: false },
        yaxis: { ...axis, range: [low - room, high + room], nticks: 5, automargin: false },
        shapes,
      },
      { staticPlot: true, displayModeBar: false }
    );
    drawCost = performance.now() - started;
  }

  // While a reply streams in, never spend more than about a fifth of the time on drawing; what is complete is drawn next.
  function drawChartSoon() {
    if (payload.done) clearTimeout(drawTimer);
    else if (drawTimer !== null) return;
    drawTimer = setTimeout(drawChart, payload.done ? 0 : Math.min(4 * drawCost, 1000));
  }

  function redraw() {
    if (!payload) return;
    drawRoles();
    drawHeat();
    drawChartSoon();
  }

  new ResizeObserver(() => {
    if (scrub.clientWidth === width) return;
    width = scrub.clientWidth;
    redraw();
    placeCursor();
  }).observe(scrub);

  let cursor = 0;
  function placeCursor() {
    if (!payload) return;
    const x = ((cursor + 0.5) / payload.tokens.length) * width;
    part("cursor").style.transform = part("thumb").style.transform = "translateX(" + x.toFixed(2) + "px)";
  }

  return {
    show(nextPayload, nextTrait) {
      payload = nextPayload;
      trait = nextTrait;
      width = scrub.clientWidth;
      redraw();
    },
    moveTo(index) {
      cursor = index;
      placeCursor();
    },
    redraw,
    usePlotly(library) {
      plotly = library;
      view.dataset.chart = "ready";
      drawChart();
    },
  };
}
