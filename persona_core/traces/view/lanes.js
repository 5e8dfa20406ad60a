// The lanes: the roles, a heat strip for each side (a row per trait, or per block), and with two sides a strip of their
// difference. Drawn on canvases, on the timeline's axis.

const ROW = { one: 18, two: 13, tight: 6 }; // px per row of one side, of two, and above ten rows

function makeLanes(node) {
  const roles = make("div", "tv-roles");
  let canvases = [];
  let built = null; // what the elements show; while a reply grows they stay and are repainted

  let shown = []; // the strips
  // strips: from top to bottom, [{key, label, rows: [{label, note, colour, scores, shift, chosen, onset}], orders: see
  // ordersOf, faint(position)}]
  function show(strips, drawing) {
    const texts = strips.map(({ key, label, rows }) => [key, label, rows.map((row) => [row.label, row.note, row.colour, row.chosen])]);
    const wanted = JSON.stringify(texts);
    if (built !== wanted) build(strips);
    built = wanted;
    shown = strips;
    const { model } = drawing;
    strips.forEach((strip, s) => paintStrip(canvases[s], strip, { ...drawing, height: rowHeight(strip, strips.length) }));
    showRoles(roles, model, drawing);
  }

  const rowHeight = ({ rows }, strips) => (rows.length > 10 ? ROW.tight : strips > 1 ? ROW.two : ROW.one);

  // The width of the longest name, with the dot behind it.
  function widest(strips) {
    const pen = make("canvas").getContext("2d");
    pen.font = "700 10.5px " + getComputedStyle(node).fontFamily;
    return Math.ceil(Math.max(...strips.flatMap(({ rows }) => rows.map(({ label }) => pen.measureText(label).width)))) + 20;
  }

  function build(strips) {
    canvases = [];
    node.parentElement.style.setProperty("--tv-names", widest(strips) + "px");
    const parts = strips.map((strip) => {
      const height = rowHeight(strip, strips.length);
      const lane = make("div", "tv-lane");
      const names = make("div", "tv-lane-names");
      const notes = make("div", "tv-lane-notes");
      for (const row of strip.rows) {
        const name = make("div", "tv-lane-name");
        const note = make("div", "tv-lane-note", row.note);
        name.style.height = note.style.height = height + "px";
        name.classList.toggle("tv-chosen", Boolean(row.chosen));
        const dot = make("span", "tv-dot");
        dot.style.setProperty("--dot", row.colour);
        name.title = row.label; // a name may be cut off all the same
        name.append(make("bdi", "", row.label), dot);
        names.append(name);
        notes.append(note);
      }
      const canvas = make("canvas", "tv-heat");
      canvas.dataset.strip = strip.key;
      canvas.style.height = height * strip.rows.length + "px";
      lane.append(names, canvas, notes);
      canvases.push(canvas);
      return strip.label ? [make("div", "tv-lane-title", strip.label), lane] : [lane];
    });
    node.replaceChildren(roles, ...parts.flat());
  }

  // The order whose arc is under a point of the window, as text; "" for none.
  function orderAt(clientX, clientY) {
    for (const [s, { arcs }] of shown.entries()) {
      const box = canvases[s].getBoundingClientRect();
      const scale = canvases[s].width / box.width;
      const pen = canvases[s].getContext("2d");
      pen.lineWidth = ARC.reach * scale;
      const found = arcs?.find(({ path }) => pen.isPointInStroke(path, (clientX - box.left) * scale, (clientY - box.top) * scale));
      if (found) return orderText(found) + ", intervals apart";
    }
    return "";
  }

  return { show, orderAt };
}

function paintStrip(canvas, strip, { width, ratio, height, axis, scale, colours }) {
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.round(height * strip.rows.length * ratio);
  const pen = canvas.getContext("2d");
  const [high, low, ink, paper] = ["--tv-high", "--tv-low", "--tv-ink", "--tv-paper"].map(colours.of);
  const n = axis.to - axis.from;
  const x = (position) => Math.round(((position - axis.from) / n) * canvas.width);
  // One column per token; with more tokens than pixels, the strongest token of each pixel: a spike is never averaged
  // away.
  const columns = Math.min(n, canvas.width);
  strip.rows.forEach((row, r) => {
    const top = Math.round(r * height * ratio);
    const bottom = Math.round((r + 1) * height * ratio) - (strip.rows.length > 1 ? Math.ceil(ratio) : 0);
    for (let column = 0; column < columns; column++) {
      const from = axis.from + Math.floor((column * n) / columns);
      const to = Math.max(from + 1, axis.from + Math.floor(((column + 1) * n) / columns));
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
    pen.globalAlpha = 1;
    if (row.onset) paintOnset(row.onset, top, bottom);
  });
  const middle = (name) => (strip.rows.findIndex(({ label }) => label === name) + 0.5) * height * ratio;
  strip.arcs = (strip.orders ?? []).map((order) => ({ ...order, ...arcOf(order, x, middle) }));
  for (const arc of strip.arcs) paintArc(pen, arc, ratio, ink, paper);

  // A tick at the token, and a line under its interval; with an edge, to be seen on every colour.
  function paintOnset({ at, low: from, high: to }, top, bottom) {
    const [tick, line] = [Math.round(2 * ratio), Math.max(1, Math.round(1.5 * ratio))];
    const left = Math.round((x(at) + x(at + 1) - tick) / 2);
    for (const [colour, edge] of [[paper, Math.ceil(ratio)], [ink, 0]]) {
      pen.fillStyle = colour;
      pen.fillRect(left - edge, top, tick + 2 * edge, bottom - top);
      if (from !== null) pen.fillRect(x(from), bottom - line - edge, Math.max(x(to + 1) - x(from), 1), line + edge);
    }
  }
}

// The roles on the first side; the sides differ only in the reply.
function showRoles(lane, model, { width, axis }) {
  const side = model.sides[0];
  const runs = [];
  let begin = 0;
  for (let i = 1; i <= side.n; i++) {
    if (i < side.n && side.roles[i] === side.roles[begin]) continue;
    const [start, end] = [Math.max(begin + side.shift, axis.from), Math.min(i + side.shift, axis.to)];
    if (start < end) runs.push([side.roles[begin], start, end]);
    begin = i;
  }
  const share = (positions) => positions / (axis.to - axis.from);
  lane.replaceChildren(
    ...runs.map(([role, start, end]) => {
      // A label that does not fit is left out: half a word would mislead.
      const fitsLabel = role !== "template" && share(end - start) * width > 8 + 6.5 * role.length;
      const run = make("div", "tv-run", fitsLabel ? role : "");
      run.dataset.role = role;
      run.style.left = 100 * share(start - axis.from) + "%";
      run.style.width = 100 * share(end - start) + "%";
      return run;
    })
  );
}
