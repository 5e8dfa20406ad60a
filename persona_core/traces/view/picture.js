// The exported picture: title, coloured text of each side, the heat strips and the chart, redrawn on one canvas.

const MAX_HEIGHT = 32000; // px of a canvas: Chromium draws 32,767, other browsers little more

async function drawPicture(view, { model, trait, choices, scale, colours, chartImage }) {
  const strips = [...view.querySelectorAll(".tv-lane")].map((lane) => ({
    title: lane.previousElementSibling?.matches(".tv-lane-title") ? lane.previousElementSibling.textContent : "",
    canvas: lane.querySelector("canvas"),
    names: [...lane.querySelectorAll(".tv-lane-name")].map((name) => ({
      text: name.textContent,
      colour: getComputedStyle(name.querySelector(".tv-dot")).backgroundColor,
    })),
  }));
  const ratio = 2;
  const width = 1200;
  const edge = 32;
  const of = colours.of;
  const sans = getComputedStyle(view).fontFamily;
  const columnGap = 40;
  const columnWidth = (width - 2 * edge - (model.sides.length - 1) * columnGap) / model.sides.length;
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d");
  const line = 27;

  // The position of each token; a word wraps as a whole if it fits into a line.
  function layOut(side) {
    pen.font = "16px " + sans;
    const placed = [];
    let [x, y] = [0, 0];
    let role = null;
    for (let i = 0; i < side.n; i++) {
      if (side.special[i] && !choices.special) continue;
      if (side.roles[i] !== role) {
        role = side.roles[i];
        if (x > 0) [x, y] = [0, y + line];
        if (role !== "template") {
          placed.push({ label: WHO[role] ?? role, x: 0, y });
          y += line - 6;
        }
      }
      for (const piece of side.tokens[i].split(/(\n)/)) {
        if (piece === "\n") {
          [x, y] = role === "template" ? [x, y] : [0, y + line];
          continue;
        }
        const text = piece.replace(INVISIBLE_ALL, symbolOf);
        for (let rest = text; rest; ) {
          let taken = rest;
          let size = pen.measureText(taken).width;
          if (x > 0 && x + size > columnWidth) {
            [x, y] = [0, y + line];
            rest = rest.replace(/^ /, ""); // no line begins with the space between two words
            continue;
          }
          while (size > columnWidth && taken.length > 1) {
            taken = taken.slice(0, Math.max(1, Math.floor((taken.length * columnWidth) / size) - 1));
            size = pen.measureText(taken).width;
          }
          placed.push({ text: taken, i, x, y, size });
          x += size;
          rest = rest.slice(taken.length);
        }
      }
    }
    return { placed, height: y + line };
  }

  const columns = model.sides.map(layOut);
  const chartHeight = (chartImage.height / chartImage.width) * (width - 2 * edge);
  // Strips lie over the chart's plot area, at the scale at which the chart is drawn.
  const chart = view.querySelector(".tv-chart");
  const [area, zoom] = [view.querySelector(".tv-area"), (width - 2 * edge) / Math.max(chart.clientWidth, 1)];
  const [stripLeft, stripWidth] = [edge + area.offsetLeft * zoom, area.clientWidth * zoom];
  const stripHeight = strips.reduce((sum, { canvas, title }) => sum + canvas.clientHeight * zoom + (title ? 28 : 10), 0);
  const others = 116 + 24 + chartHeight + 12 + stripHeight + edge;
  const room = MAX_HEIGHT / ratio - others;
  const textHeight = Math.min(Math.max(...columns.map(({ height }) => height)), room);
  canvas.width = width * ratio;
  canvas.height = Math.ceil(others + textHeight) * ratio;
  pen.scale(ratio, ratio);
  pen.fillStyle = of("--tv-paper");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const write = (text, x, y, size, colour, weight = 400) => {
    pen.font = weight + " " + size + "px " + sans;
    pen.fillStyle = of(colour);
    pen.fillText(text, x, y);
  };
  // The hatching of sink tokens, which have no score.
  const hatch = (x, y, width, height) => {
    pen.save();
    pen.beginPath();
    pen.rect(x, y, width, height);
    pen.clip();
    pen.globalAlpha = 0.34;
    pen.strokeStyle = of("--tv-muted");
    pen.beginPath();
    for (let from = x - height; from < x + width; from += 6) {
      pen.moveTo(from, y + height);
      pen.lineTo(from + height, y);
    }
    pen.stroke();
    pen.restore();
  };
  const fitted = (text, room) => {
    pen.font = "600 13px " + sans;
    return fittedText(pen, text, room);
  };
  write(fitted(model.title, (width - 2 * edge) * (13 / 21)), edge, 46, 21, "--tv-ink", 600);
  write(trait + ", " + UNITS[choices.kind] + ". Full colour at ±" + scale + ". Tokens are counted from the start of the reply.", edge, 70, 14, "--tv-muted");
  model.sides.forEach((side, s) => {
    const x0 = edge + s * (columnWidth + columnGap);
    const y0 = 116;
    write(fitted([side.name, metaLine(side.meta)].filter(Boolean).join(" · "), columnWidth), x0, 98, 13, "--tv-muted", 600);
    const scores = scoresOf(model, side, trait, choices);
    const sinks = sinksOf(side, blockOf(model, trait, choices), choices.alignment);
    const cut = columns[s].height > room;
    if (cut) write("Cut here: a picture cannot be taller. The JSON and CSV exports have all of the text.", x0, y0 + room - 6, 13, "--tv-muted", 600);
    for (const item of columns[s].placed) {
      if (cut && item.y + 2 * line > room) break;
      if (item.label) {
        write(item.label.toUpperCase(), x0 + item.x, y0 + item.y + 10, 11, "--tv-muted", 600);
        continue;
      }
      const share = shareOf(scores[item.i], scale);
      pen.globalAlpha = Math.abs(share) * 0.78;
      pen.fillStyle = of(share < 0 ? "--tv-low" : "--tv-high");
      pen.fillRect(x0 + item.x, y0 + item.y - 5, item.size, 23);
      pen.globalAlpha = 1;
      // The second channel: a line under positive scores, over negative ones.
      const thick = Math.max(0, Math.abs(share) * 3 - 0.5);
      pen.fillStyle = of(share < 0 ? "--tv-low-line" : "--tv-high-line");
      pen.fillRect(x0 + item.x, y0 + item.y + (share < 0 ? -5 : 18 - thick), item.size, thick);
      if (sinks[item.i] === 1) hatch(x0 + item.x, y0 + item.y - 5, item.size, 23);
      write(item.text, x0 + item.x, y0 + item.y + 12, 16, side.special[item.i] ? "--tv-muted" : "--tv-ink");
    }
  });
  let y = 116 + textHeight + 24;
  for (const { canvas: strip, title, names } of strips) {
    if (title) write(title, stripLeft, (y += 18) - 5, 13, "--tv-muted", 600);
    const height = strip.clientHeight * zoom;
    pen.drawImage(strip, stripLeft, y, stripWidth, height);
    names.forEach(({ text, colour }, row) => {
      const middle = y + ((row + 0.5) * height) / names.length;
      pen.fillStyle = colour;
      pen.beginPath();
      pen.arc(stripLeft - 10, middle, 3.5, 0, 2 * Math.PI);
      pen.fill();
      pen.textAlign = "end";
      write(text, stripLeft - 19, middle + 3.5, 10.5, "--tv-muted");
      pen.textAlign = "start";
    });
    y += height + 10;
  }
  pen.drawImage(chartImage, edge, y + 2, width - 2 * edge, chartHeight);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
