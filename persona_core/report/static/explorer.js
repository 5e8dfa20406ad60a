// Small multiples of the published runs: one cell per prompt, one lane per run. Filtering and sorting happen here; a
// click requests the whole reply. Prompts, ids and names are untrusted: they are only ever set as text.
//
// mountExplorer(root, options) -> { update(table), state(), restore(state), open(id, trait) }
//   emptyText        shown while there is no table
//   onPick(pick)     a prompt was chosen: {id, trait: the selected one, picked: whether the visitor has selected it since the
//                    last pick, at: the token of the reply that was clicked, or undefined}
//   onState(state)   after each change: {trait, sort, run, set, category, text, id}

const SORTS = {
  turn: "clearest turn",
  given: "order of publication",
  onset: "earliest onset",
  max: "highest score",
  mean: "highest mean",
  difference: "largest rise from the first run",
};

function mountExplorer(root, options = {}) {
  const part = (name) => root.querySelector('[data-part="' + name + '"]');
  const field = (name) => root.querySelector('[data-field="' + name + '"]');
  const grid = part("grid");
  let table = null;
  let cells = []; // {prompt, item, button, lanes, difference}, in the order of publication
  let shown = [];
  let wanted = null; // the prompt of a link, before the runs have arrived
  let state = { trait: null, sort: null, run: "", set: "", category: "", text: "", id: null };

  function node(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // ---- cells ----

  function update(next) {
    table = next?.prompts?.length ? next : null;
    part("explorer").dataset.state = table ? "ready" : "empty";
    part("empty").textContent = next?.error || options.emptyText || "No runs yet.";
    if (!table) return;
    fill("trait", table.traits.map((trait) => [trait, trait]));
    const sorts = Object.entries(SORTS).filter(
      ([key]) => (key !== "onset" || table.analysed) && (key !== "difference" || table.configs.length > 1)
    );
    fill("sort", sorts);
    fill("run", [["", table.configs.length > 1 ? "all" : table.configs[0]], ...(table.configs.length > 1 ? table.configs.map((c) => [c, c]) : [])]);
    for (const key of ["set", "category"]) {
      const values = [...new Set(table.prompts.map((prompt) => prompt[key]).filter(Boolean))].sort();
      fill(key, [["", "all"], ...values.map((value) => [value, value])]);
    }
    part("unit").textContent = table.unit;
    part("low").textContent = "−" + Number(table.scale.toPrecision(2));
    part("high").textContent = "+" + Number(table.scale.toPrecision(2));
    build();
    const first = { trait: mostTelling(), sort: "turn" };
    apply({ ...state, trait: state.trait ?? first.trait, sort: state.sort ?? first.sort });
    const linked = wanted;
    wanted = null;
    options.onState?.({ ...state });
    if (linked !== null && table.prompts.some((prompt) => prompt.id === linked)) pick(linked);
  }

  function fill(name, choices) {
    field(name).replaceChildren(...choices.map(([value, text]) => new Option(text, value)));
    field(name).closest("label").hidden = choices.length < 2;
  }

  function build() {
    watcher.disconnect();
    cells = table.prompts.map((prompt) => {
      const item = node("li", "ex-item");
      const button = node("button", "ex-cell");
      button.type = "button";
      const title = node("span", "ex-prompt", prompt.prompt.trim() || prompt.id);
      title.dir = "auto";
      const lanes = prompt.runs.map((run) => {
        const lane = node("span", "ex-lane");
        const canvas = node("canvas", "ex-heat");
        canvas.setAttribute("aria-hidden", "true");
        canvas.style.height = LANE.height + "px";
        canvas.title = "Open the reply at this token";
        const summary = node("span", "ex-says");
        lane.append(node("span", "ex-run", table.configs.length > 1 ? run.config : ""), canvas, summary);
        return { run, lane, canvas, summary, drawn: null };
      });
      const difference = node("span", "ex-difference");
      const foot = node("span", "ex-foot");
      foot.append(node("bdi", "", [prompt.id, prompt.category].filter(Boolean).join(" · ")), difference);
      button.append(title, ...lanes.map(({ lane }) => lane), foot);
      button.addEventListener("click", (event) => {
        const lane = lanes.find(({ canvas }) => canvas === event.target);
        choose(prompt.id, lane && tokenOfLane(lane.canvas, lane.run, longest(), event.clientX));
      });
      item.append(button);
      const cell = { prompt, item, button, lanes, difference, seen: false };
      button.cell = cell;
      watcher.observe(button);
      return cell;
    });
  }

  const longest = () => Math.max(1, ...table.prompts.flatMap((prompt) => prompt.runs.map((run) => run.n)));
  const best = (cell, key) => Math.max(...visible(cell).map((run) => run.traits[state.trait]?.[key] ?? -Infinity));
  const visible = (cell) => cell.prompt.runs.filter((run) => !state.run || run.config === state.run);

  // "Before the reply" sorts before the first token; no onset sorts last.
  function onsetOf(cell) {
    const onsets = visible(cell).map((run) => {
      const onset = run.traits[state.trait]?.onset;
      return onset?.answer === "before the reply" ? -1 : onset?.onset ?? Infinity;
    });
    return Math.min(...onsets);
  }

  // Second run minus first, of means.
  function differenceOf(cell) {
    const [first, second] = table.configs.map((c) => cell.prompt.runs.find((run) => run.config === c)?.traits[state.trait]?.mean);
    return first == null || second == null ? null : second - first;
  }

  const WEIGHTS = {
    given: null,
    turn: (cell) => -best(cell, "turn"),
    onset: onsetOf,
    max: (cell) => -best(cell, "max"),
    mean: (cell) => -best(cell, "mean"),
    difference: (cell) => -(differenceOf(cell) ?? -Infinity),
  };

  // What is shown first: the trait that rises most from the first run to the second, or is highest in the only one.
  function mostTelling() {
    const level = (trait) => {
      const means = (config) => table.prompts.map((p) => p.runs.find((run) => run.config === config)?.traits[trait]?.mean);
      const [first, second] = table.configs.map(means);
      const values = (second ? first.map((mean, i) => second[i] - mean) : first).filter(Number.isFinite);
      return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : -Infinity;
    };
    const levels = table.traits.map(level);
    return table.traits[levels.indexOf(Math.max(...levels))];
  }

  function show() {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (cell) => {
      const { prompt } = cell;
      const hay = (prompt.prompt + " " + prompt.id).toLowerCase();
      return (
        (!state.set || prompt.set === state.set) &&
        (!state.category || prompt.category === state.category) &&
        visible(cell).length > 0 &&
        words.every((word) => hay.includes(word))
      );
    };
    shown = cells.filter(fits);
    const weight = WEIGHTS[state.sort];
    if (weight) {
      const of = new Map(shown.map((cell) => [cell, weight(cell)]));
      shown.sort((a, b) => of.get(a) - of.get(b) || 0); // Infinity - Infinity is NaN: equal
    }
    for (const cell of shown) {
      for (const lane of cell.lanes) {
        const { run, summary } = lane;
        lane.lane.hidden = Boolean(state.run) && run.config !== state.run;
        summary.textContent = summaryOf(run.traits[state.trait]);
      }
      const difference = differenceOf(cell);
      cell.difference.textContent = difference === null ? "" : "difference " + signed(difference);
      cell.button.classList.toggle("ex-chosen", cell.prompt.id === state.id);
      cell.button.setAttribute("aria-current", String(cell.prompt.id === state.id));
      cell.button.tabIndex = -1;
      if (cell.seen) draw(cell);
    }
    const entry = shown.find((cell) => cell.prompt.id === state.id) ?? shown[0];
    if (entry) entry.button.tabIndex = 0; // one tab stop; arrow keys move inside
    grid.replaceChildren(...shown.map(({ item }) => item));
    part("count").textContent = shown.length
      ? shown.length + " of " + cells.length + " prompts"
      : "No prompt matches. Widen a filter.";
  }

  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
  function summaryOf(found) {
    if (!found) return "";
    const parts = [];
    if (found.onset) parts.push(found.onset.says);
    if (found.mean !== null) parts.push("mean " + signed(found.mean) + ", highest " + signed(found.max));
    return parts.join(" · ");
  }

  // ---- drawing, when a cell comes into view ----

  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        target.cell.seen = isIntersecting;
        if (isIntersecting) draw(target.cell);
      }
    },
    { rootMargin: "200px" }
  );

  let theme = 0; // counts theme changes; lanes drawn before one are redrawn
  function draw(cell) {
    const style = getComputedStyle(part("explorer"));
    const n = longest();
    for (const lane of cell.lanes) {
      if (lane.lane.hidden) continue;
      const width = laneWidth(lane.canvas);
      const key = [state.trait, width, theme].join();
      if (width === 0 || lane.drawn === key) continue;
      lane.drawn = key;
      drawLane(lane.canvas, lane.run.n, lane.run.traits[state.trait], { n, step: table.step, scale: table.scale, style });
    }
  }

  const redraw = () => {
    theme += 1;
    for (const cell of shown) if (cell.seen) draw(cell);
  };
  for (const watched of [document.documentElement, document.body])
    new MutationObserver(redraw).observe(watched, { attributes: true, attributeFilter: ["class", "data-theme"] });
  new ResizeObserver(redraw).observe(grid);

  // ---- choices ----

  function apply(next) {
    const allowed = (name, value) => [...field(name).options].some((option) => option.value === value);
    state = { ...state, ...next };
    for (const name of ["trait", "sort", "run", "set", "category"]) {
      if (!allowed(name, state[name])) state[name] = field(name).options[0].value;
      field(name).value = state[name];
    }
    state.text = String(state.text ?? "").slice(0, 200);
    field("text").value = state.text;
    show();
  }

  function change(next) {
    apply(next);
    options.onState?.({ ...state });
  }
  let picked = false; // whether the trait was selected by the visitor since the last pick
  for (const name of ["trait", "sort", "run", "set", "category"])
    field(name).addEventListener("change", () => {
      picked ||= name === "trait";
      change({ [name]: field(name).value });
    });
  field("text").addEventListener("input", () => change({ text: field("text").value }));

  function pick(id, at) {
    options.onPick?.({ id, trait: state.trait, picked, at });
    picked = false;
  }

  function choose(id, at) {
    change({ id });
    shown.find((cell) => cell.prompt.id === id)?.button.focus();
    pick(id, at);
  }

  grid.addEventListener("keydown", (event) => {
    const index = shown.findIndex((cell) => cell.button === document.activeElement);
    if (index < 0) return;
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const target = event.key === "Home" ? 0 : event.key === "End" ? shown.length - 1 : step === undefined ? -1 : index + step;
    if (!shown[target]) return;
    for (const cell of shown) cell.button.tabIndex = -1;
    shown[target].button.tabIndex = 0;
    shown[target].button.focus();
    event.preventDefault();
  });

  update(null);
  return {
    update,
    state: () => ({ ...state }),
    // As if the prompt had been chosen with that trait selected; also before the runs have arrived.
    open(id, trait) {
      wanted = id;
      state = { ...state, trait: trait ?? state.trait, id };
      if (!table) return;
      wanted = null;
      change({});
      pick(id);
    },
    // Called before the runs have arrived; the state is applied, and its prompt picked, once they have.
    restore(saved) {
      state = { ...state, ...saved };
      wanted = saved?.id ?? null;
      if (table) apply(state);
    },
  };
}
