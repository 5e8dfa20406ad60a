// Draws each figure when it comes into view, in the theme's colours, and shows one trait at a time.
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const seen = new Set();

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Lines that read well on white are too dark on black: the pairs of the token view's two themes.
  const ON_DARK = {
    "#d1495b": "#ff8492", "#2f6fb5": "#7ab4f5", "#2b8a57": "#5fce93", "#8455c0": "#bd9bf5",
    "#a87400": "#e3b34a", "#0e8587": "#4fd0cf", "#bd4aa5": "#f08fd8", "#6a7280": "#aab4c2", "#566072": "#a0abbb",
    "#b26a72": "#d99aa1", "#8d7aa8": "#b9a8d3", "#7a8699": "#93a0b4",
  };
  const repaint = (part) => {
    for (const [key, value] of Object.entries(part ?? {})) {
      if (key.includes("olor") && typeof value === "string") part[key] = ON_DARK[value] ?? value;
      else if (key === "color" && Array.isArray(value)) part[key] = value.map((c) => ON_DARK[c] ?? c);
      else if (typeof value === "object" && value && !ArrayBuffer.isView(value) && !(Array.isArray(value) && typeof value[0] !== "object")) repaint(value);
    }
  };

  const themed = (figure) => {
    const layout = structuredClone(figure.layout);
    const ink = colour("--ink"), muted = colour("--muted"), line = colour("--line");
    Object.assign(layout, {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: colour("--sans"), size: 13 },
      hoverlabel: { bgcolor: colour("--paper"), bordercolor: muted, font: { color: ink } },
      autosize: true,
      dragmode: false, // a finger that starts on a figure must scroll the page
    });
    for (const axis of ["xaxis", "yaxis"]) {
      const own = layout[axis] ?? {};
      layout[axis] = {
        gridcolor: line, zerolinecolor: muted, linecolor: line, tickcolor: line, ...own,
        title: { ...(typeof own.title === "string" ? { text: own.title } : own.title), font: { color: muted, size: 13 } },
      };
    }
    const data = structuredClone(figure.data);
    for (const trace of data) {
      if (trace.type === "heatmap") trace.colorscale = trace.colorscale.map(([at, c]) => [at, at === 0.5 ? colour("--zero") : c]);
      if (trace.marker?.symbol === "line-ns-open") {
        trace.marker.color = trace.marker.line.color = trace.error_x.color = ink;
      }
    }
    if (document.documentElement.classList.contains("dark")) {
      for (const trace of data) for (const part of ["line", "marker", "error_x", "error_y"]) repaint(trace[part]);
      for (const arrow of layout.annotations ?? []) repaint(arrow);
    }
    const tokens = page.tokens[layout.meta?.config];
    if (tokens) {
      data[0].text = layout.meta.order.map((row) => tokens[row]);
      data[0].customdata = layout.meta.order.map((row, at) => data[0].z[at].map(() => page.ids[layout.meta.config][row]));
      layout.plot_bgcolor = colour("--soft"); // where a reply has ended
    }
    return [data, layout];
  };

  const draw = (node) => {
    const figure = page.figures[node.dataset.figure];
    if (!figure || node.closest("[hidden]")) return;
    const [data, layout] = themed(figure);
    Plotly.react(node, data, layout, { responsive: true, displayModeBar: false, showSendToCloud: false });
  };

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting || seen.has(entry.target)) continue;
      seen.add(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "300px" });

  const show = (trait) => {
    for (const button of document.querySelectorAll("nav button")) {
      button.setAttribute("aria-pressed", String(button.dataset.pick === trait));
    }
    for (const part of document.querySelectorAll("[data-trait]")) part.hidden = part.dataset.trait !== trait;
    for (const node of document.querySelectorAll("[data-trait]:not([hidden]) .plot")) if (seen.has(node)) draw(node);
    const picked = document.querySelector("nav button[aria-pressed=true]");
    picked.scrollIntoView({ inline: "center", block: "nearest", behavior: "instant" });
    history.replaceState(null, "", `#${encodeURIComponent(trait)}`);
  };

  const theme = () => {
    document.documentElement.classList.toggle("dark", prefers.matches);
    for (const node of seen) draw(node);
  };

  prefers.addEventListener("change", theme);
  addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(draw));
  document.documentElement.classList.toggle("dark", prefers.matches);
  for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => show(button.dataset.pick));
  let wanted = "";
  try { wanted = decodeURIComponent(location.hash.slice(1)); } catch { /* a hash that is none: the first trait */ }
  show(page.traits.includes(wanted) ? wanted : page.traits[0]);
  for (const node of document.querySelectorAll(".plot")) watcher.observe(node);
})();
