// The lanes under the chart: the roles, a heat strip for each side (a row per trait, or per block), and with two sides a
// strip of their difference. Drawn on canvases, on the timeline's axis.

const ROW = { roomy: 11, tight: 6 }; // px per row; tight above ten rows

function makeLanes(node) {
  const roles = make("div", "tv-roles");
  let canvases = [];
  let built = null; // what the elements show; while a reply grows they stay and are repainted

  // strips: from top to bottom, [{key, label, rows: [{label, colour, scores, shift, chosen}], faint(position)}]
  function show(strips, drawing) {
    const wanted = JSON.stringify(strips.map(({ key, label, rows }) => [key, label, rows.map((row) => [row.label, row.colour, row.chosen])]));
    if (built !== wanted) build(strips);
    built = wanted;
    strips.forEach((strip, s) => paintStrip(canvases[s], strip, { ...drawing, height: rowHeight(strip) }));
    showRoles(roles, drawing.model, drawing.width);
  }

  const rowHeight = (strip) => (strip.rows.length > 10 ? ROW.tight : ROW.roomy);

  function build(strips) {
    canvases = [];
    const parts = strips.map((strip) => {
      const height = rowHeight(strip);
      const lane = make("div", "tv-lane");
      const names = make("div", "tv-lane-names");
      for (const row of strip.rows) {
        const name = make("div", "tv-lane-name");
        name.style.height = height + "px";
        name.classList.toggle("tv-chosen", Boolean(row.chosen));
        const dot = make("span", "tv-dot");
        dot.style.setProperty("--dot", row.colour);
        name.append(make("bdi", "", row.label), dot);
        names.append(name);
      }
      const canvas = make("canvas", "tv-heat");
      canvas.dataset.strip = strip.key;
      canvas.style.height = height * strip.rows.length + "px";
      lane.append(names, canvas);
      canvases.push(canvas);
      return strip.label ? [make("div", "tv-lane-title", strip.label), lane] : [lane];
    });
    node.replaceChildren(roles, ...parts.flat());
  }

  return { show };
}

function paintStrip(canvas, strip, { width, ratio, height, model, scale, colours }) {
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.round(height * strip.rows.length * ratio);
  const pen = canvas.getContext("2d");
  const [high, low] = [colours.of("--tv-high"), colours.of("--tv-low")];
  const n = model.length;
  // One column per token; with more tokens than pixels, the strongest token of each pixel: a spike is never averaged
  // away.
  const columns = Math.min(n, canvas.width);
  strip.rows.forEach((row, r) => {
    const top = Math.round(r * height * ratio);
    const bottom = Math.round((r + 1) * height * ratio) - (strip.rows.length > 1 ? Math.ceil(ratio) : 0);
    for (let column = 0; column < columns; column++) {
      const from = Math.floor((column * n) / columns);
      const to = Math.max(from + 1, Math.floor(((column + 1) * n) / columns));
      let best = 0;
      for (let position = from; position < to; position++) {
        const score = row.scores[position - row.shift];
        if (Math.abs(score) > Math.abs(best)) best = score; // NaN and undefined compare as false
      }
      if (best === 0) continue;
      const left = Math.round((column * canvas.width) / columns);
      const right = Math.round(((column + 1) * canvas.width) / columns);
      pen.globalAlpha = Math.min(Math.abs(best) / scale, 1) * (strip.faint?.(from) ? 0.45 : 1);
      pen.fillStyle = best < 0 ? low : high;
      pen.fillRect(left, top, right - left, bottom - top);
    }
  });
}

// The roles on the first side; the sides differ only in the reply.
function showRoles(lane, model, width) {
  const side = model.sides[0];
  const runs = [];
  let from = 0;
  for (let i = 1; i <= side.n; i++) {
    if (i < side.n && side.roles[i] === side.roles[from]) continue;
    runs.push([side.roles[from], from + side.shift, i + side.shift]);
    from = i;
  }
  lane.replaceChildren(
    ...runs.map(([role, start, end]) => {
      // A label that does not fit is left out: half a word would mislead.
      const fitsLabel = role !== "template" && ((end - start) / model.length) * width > 8 + 6.5 * role.length;
      const run = make("div", "tv-run", fitsLabel ? role : "");
      run.dataset.role = role;
      run.style.left = (100 * start) / model.length + "%";
      run.style.width = (100 * (end - start)) / model.length + "%";
      return run;
    })
  );
}
