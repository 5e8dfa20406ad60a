// The trend lines: one per trait, one plot per side, on the timeline's axis.

const N_COLOURS = 8; // --tv-c0 … --tv-c7; further traits repeat the colours with dashes
const GAP = 20; // px above each of two plots, for the side's name

// Load plotly.js once per page and keep a private reference: Gradio loads another version.
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

// scene: model, traits (shown), trait, choices, scale, colours, width, left, right, height
function drawTrend(plotly, node, scene) {
  const { model, traits, trait, choices, scale, colours, width, left, right, height } = scene;
  const { of } = colours;
  let [low, high] = choices.kind === "cosine" ? [-scale, scale] : [-scale / 2, scale];
  for (const side of model.sides)
    for (const name of traits)
      scoresOf(model, side, name, choices).forEach((score, i) => {
        if (side.special[i] || side.roles[i] === "template") return; // extreme in many models; their lines are cut off
        if (score < low) low = score; // NaN moves neither end
        if (score > high) high = score;
      });
  const room = (high - low) * 0.04;
  const order = [...traits].sort((a, b) => (a === trait) - (b === trait)); // the selected one on top
  const shapes = [];
  const lines = [];
  const axes = {};
  const annotations = [];
  const n = model.sides.length;
  const gap = n > 1 ? GAP : 0;
  const [above, below] = [gap || 4, 4]; // px of margin
  const inner = height - above - below;
  const share = (inner - (n - 1) * gap) / n / inner;
  const axis = { fixedrange: true, zeroline: false, showgrid: false, ticks: "", color: of("--tv-muted") };
  model.sides.forEach((side, s) => {
    const y = s ? "y2" : "y";
    const top = 1 - s * (share + gap / inner);
    axes["yaxis" + (s ? "2" : "")] = {
      ...axis, range: [low - room, high + room], nticks: 5, automargin: false, domain: [Math.max(top - share, 0), top],
    };
    if (n > 1)
      annotations.push({
        text: plain(side.name), xref: "paper", yref: "paper", x: 0, y: top, xanchor: "left", yanchor: "bottom",
        showarrow: false, font: { size: 12, color: of("--tv-ink") }, borderpad: 0, yshift: -2,
      });
    for (const name of order) {
      const index = model.traits.indexOf(name);
      lines.push({
        type: "scatter", mode: "lines", x0: side.shift, dx: 1, yaxis: y,
        y: scoresOf(model, side, name, choices),
        opacity: name === trait ? 1 : 0.7,
        line: {
          color: colours.trait(index),
          width: name === trait ? 2.4 : 1.2,
          dash: index < N_COLOURS ? "solid" : "dot",
          simplify: true,
        },
      });
    }
    const line = (more) => ({ type: "line", yref: y, line: { color: of("--tv-line-strong"), width: 1 }, ...more });
    shapes.push(line({ xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0 }));
    const band = nullBand(model, side, trait, choices);
    if (band)
      shapes.unshift({
        type: "rect", xref: "paper", x0: 0, x1: 1, yref: y, y0: band[0], y1: band[1], layer: "below",
        fillcolor: of("--tv-band"), line: { width: 0 },
      });
    if (side.n_prompt > 0 && side.n_prompt < side.n)
      shapes.push(
        line({
          x0: model.start - 0.5, x1: model.start - 0.5, yref: y + " domain", y0: 0, y1: 1,
          line: { color: of("--tv-muted"), width: 1, dash: "dot" },
        })
      );
    const onset = side.onsets?.[trait];
    const tick = onset?.onset ?? onset?.doubles;
    if (Number.isInteger(tick)) {
      // A score that is shown a token later moves its onset along.
      const moved = (choices.alignment === "before") - (side.alignment === "before");
      const at = (token) => model.start + token + moved;
      const [from, to] = [onset.low ?? tick, onset.high ?? tick];
      if (tick === onset.onset)
        shapes.push({
          type: "rect", x0: at(from) - 0.5, x1: at(to) + 0.5, yref: y + " domain", y0: 0, y1: 1, layer: "below",
          fillcolor: of("--tv-onset"), line: { width: 0 },
        });
      shapes.push(
        line({
          x0: at(tick), x1: at(tick), yref: y + " domain", y0: 0.86, y1: 1,
          line: { color: of("--tv-ink"), width: 2 },
        })
      );
    }
  });
  plotly.react(
    node,
    lines,
    {
      width: width + left + right,
      height,
      margin: { l: left, r: right, t: above, b: below, pad: 0 },
      showlegend: false,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: colours.font, size: 11, color: of("--tv-muted") },
      xaxis: { ...axis, range: [-0.5, model.length - 0.5], showticklabels: false, anchor: n > 1 ? "y2" : "y" },
      ...axes,
      shapes,
      annotations,
    },
    { staticPlot: true, displayModeBar: false }
  );
}

// Plotly interprets a subset of HTML in text; names are plain text.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// Where most neutral tokens of this model lie: within two standard deviations. Cosines have no null.
function nullBand(model, side, trait, choices) {
  if (inDeviations(choices.kind)) return [-2, 2];
  if (choices.kind !== "raw") return null;
  const column = side.blocks.indexOf(blockOf(model, trait, choices));
  const cell = model.traits.indexOf(trait) * side.blocks.length + column;
  const [mean, std] = [side.null_mean[cell], side.null_std[cell]];
  return column >= 0 && std > 0 ? [mean - 2 * std, mean + 2 * std] : null;
}
