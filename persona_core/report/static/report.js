// Draws each figure when it comes into view, in the theme's colours; shows one trait at a time. A dot, a row or a sentence
// that is about one reply opens it.
//
// mountReport(root, content, options) -> { pick(trait), destroy() }
//   content            from report_content (persona_core/report/content.py)
//   plotly()           a promise of plotly.js; called when the first figure comes into view
//   trait              shown first, if there is one of that name
//   onTrait(trait)     called when another trait is picked
//   address(place)     the link to a reply: {id, trait, at, text}: `at` is a token of the reply, from 0, or missing, `text`
//                      the number of a text in which both read the same words, or missing
//   onOpen(place)      called in place of following that link; without either, a reply's id is only shown

function mountReport(root, content, options) {
  const seen = new Set();
  const late = new Set(); // seen, but hidden when the theme changed
  let plotly = null;
  let asked = null; // for plotly.js

  setInert(root, content.html);
  root.classList.add("report");
  const all = (selector) => root.querySelectorAll(selector);
  const escaped = (text) => text.replace(/[&<>"]/g, (c) => "&#" + c.charCodeAt(0) + ";"); // Plotly's texts are markup
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Lines that read well on white are too dark on black: these are the pairs of the token view's two themes.
  const ON_DARK = {
    "#d1495b": "#ff8492", "#2f6fb5": "#7ab4f5", "#2b8a57": "#5fce93", "#8455c0": "#bd9bf5",
    "#a87400": "#e3b34a", "#0e8587": "#4fd0cf", "#bd4aa5": "#f08fd8", "#6a7280": "#aab4c2", "#566072": "#a0abbb",
    "#b26a72": "#d99aa1", "#8d7aa8": "#b9a8d3", "#7a8699": "#93a0b4", "#c26a00": "#ffac5c", "#1f2733": "#e8ecf3",
    "#e1e6ed": "#2b3442",
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
      dragmode: false, // a touch that starts on a figure scrolls the page
    });
    for (const axis of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis\d+$/.test(key))])) {
      const own = layout[axis] ?? {};
      layout[axis] = {
        zerolinecolor: muted, linecolor: line, tickcolor: line, ...own, gridcolor: line,
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
    if (root.closest(".dark")) {
      for (const trace of data) for (const part of ["line", "marker", "error_x", "error_y"]) repaint(trace[part]);
      for (const arrow of layout.annotations ?? []) repaint(arrow);
      for (const shape of layout.shapes ?? []) repaint(shape);
      repaint(layout.title);
    }
    const tokens = content.tokens?.[layout.meta?.config];
    if (tokens) {
      data[0].text = layout.meta.order.map((row) => tokens[row]);
      data[0].customdata = layout.meta.order.map((row, at) => data[0].z[at].map(() => escaped(content.ids[layout.meta.config][row])));
      layout.plot_bgcolor = colour("--soft"); // behind the end of a reply
    }
    return [data, layout];
  };

  const draw = (node) => {
    const figure = content.figures[node.dataset.figure];
    if (!plotly || !figure) return;
    if (node.closest("[hidden], details:not([open])") || !node.clientWidth) return void late.add(node);
    late.delete(node);
    const [data, layout] = themed(figure);
    plotly.react(node, data, layout, { responsive: true, displayModeBar: false, showSendToCloud: false });
    if (!opens || node.dataset.opens || !placeOf(figure, { pointNumber: 0, curveNumber: 0, x: 0, y: 0 }).id) return;
    node.dataset.opens = "true";
    node.on("plotly_click", ({ points }) => open({ ...placeOf(figure, points[0]), trait: traitOf(node) }));
  };
  const drawSeen = () => seen.forEach(draw);

  // ---- replies ----

  const opens = Boolean(options.address);
  root.classList.toggle("opens", opens);
  const traitOf = (node) => node.closest("[data-trait]")?.dataset.trait;

  // The reply of a point: rows of a heat map are replies and columns tokens; other dots name a prompt in figure.layout.meta.
  function placeOf({ layout }, { x, y, pointNumber }) {
    const { order, config, prompts } = layout.meta ?? {};
    if (!order) return { id: prompts?.[pointNumber] };
    const row = order[y];
    const positions = content.positions[config]?.[row];
    const token = Math.max(x, 0); // "before the reply" is drawn left of its first token
    return { id: content.ids[config]?.[row], at: Array.isArray(positions) ? positions[token] : positions + token };
  }

  function open(place) {
    if (place.id === undefined) return;
    if (options.onOpen) options.onOpen(place);
    else location.assign(options.address(place));
  }

  function link(node) {
    const { id, at, text } = node.dataset;
    const place = { id, at: Number(at), trait: traitOf(node), ...(text && { text }) };
    const made = document.createElement("a");
    made.href = options.address(place);
    made.title = "Read this reply at this sentence";
    made.addEventListener("click", (event) => {
      if (!options.onOpen || event.ctrlKey || event.metaKey || event.shiftKey) return; // these open another tab or window
      event.preventDefault();
      open(place);
    });
    made.append(...node.childNodes);
    node.append(made);
  }
  if (opens) all("[data-id]").forEach(link);

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting || seen.has(entry.target)) continue;
      seen.add(entry.target);
      asked ??= options.plotly().then((library) => {
        plotly = library;
        drawSeen();
      });
      draw(entry.target);
    }
  }, { rootMargin: "300px" });

  const pick = (trait) => {
    for (const button of all("nav button")) button.setAttribute("aria-pressed", String(button.dataset.pick === trait));
    for (const part of all("[data-trait]")) part.hidden = part.dataset.trait !== trait;
    for (const node of all("[data-trait]:not([hidden]) .plot")) if (seen.has(node)) draw(node);
    const picked = root.querySelector("nav button[aria-pressed=true]");
    // Sideways only, where the row of buttons scrolls: the page stays where it is.
    const row = picked?.closest("nav");
    if (row) row.scrollLeft = picked.offsetLeft - (row.clientWidth - picked.offsetWidth) / 2;
  };

  for (const button of all("nav button"))
    button.addEventListener("click", () => {
      pick(button.dataset.pick);
      options.onTrait?.(button.dataset.pick);
    });
  // A figure that was hidden when it was to be drawn is drawn when its part is unfolded.
  const unfolded = (event) => late.forEach((node) => event.target.contains(node) && draw(node));
  root.addEventListener("toggle", unfolded, true);
  const restyled = new MutationObserver(drawSeen);
  for (const node of [document.documentElement, document.body])
    restyled.observe(node, { attributes: true, attributeFilter: ["class", "data-theme"] });
  const drawAll = () => all(".plot").forEach(draw);
  addEventListener("beforeprint", drawAll);
  if (content.traits?.length) pick(content.traits.includes(options.trait) ? options.trait : content.traits[0]);
  for (const node of all(".plot")) {
    node.style.minHeight = Number(node.dataset.height) + "px";
    watcher.observe(node);
  }
  // Call before mounting other content: removes the listeners outside the root.
  const destroy = () => {
    removeEventListener("beforeprint", drawAll);
    root.removeEventListener("toggle", unfolded, true);
    restyled.disconnect();
    watcher.disconnect();
    for (const node of seen) plotly?.purge(node);
    seen.clear();
  };
  return { pick, destroy };
}

// Load plotly.js once per page, 4.8 MB, and keep a private reference: Gradio loads another version.
function personaPlotly(url) {
  const key = Symbol.for("persona_core.plotly");
  window[key] ??= new Promise((resolve, reject) => {
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
  return window[key];
}

// Inserts markup that was made from a file of figures. Its texts are escaped where it is made. As a second barrier, only
// these elements and attributes get into the page.
function setInert(root, markup) {
  const TAGS = /^(SECTION|HEADER|NAV|DIV|SPAN|P|H2|H3|H4|SMALL|B|Q|UL|OL|LI|TABLE|CAPTION|THEAD|TBODY|TR|TH|TD|BUTTON|STRONG|EM|CODE|PRE|BR|DETAILS|SUMMARY|ABBR)$/;
  const NAMES = /^(class|role|aria-[a-z]+|data-[a-z]+|scope|dir|hidden|tabindex|title|type)$/;
  const parsed = new DOMParser().parseFromString(markup, "text/html"); // runs nothing and loads nothing
  for (const node of parsed.body.querySelectorAll("*")) {
    if (!TAGS.test(node.tagName)) node.remove();
    for (const { name } of [...node.attributes]) if (!NAMES.test(name)) node.removeAttribute(name);
  }
  root.replaceChildren(...parsed.body.childNodes);
}
