// The token view: one conversation, or two, on one cursor. Runs under gr.HTML and in a standalone page.
//
// One rule keeps the panels in step: only showCursor() tells them where the cursor is.
//
// mountTokenView(root, options) -> { update(payload), state(), restore(state), chart(), branch(action), alternatives(found) }
//   chart() is what the trend lines show, as plain data: see chartOf() in chart.js
//   emptyText              shown while there is no payload
//   shellUrl or shell()    page without a payload, for the export of a page that works offline
//   onState(state)         after each change of trait, cursor, span or choices, as plain values
//   onBranch({side, at, trait, action})  shows the buttons that branch; `at` counts tokens of the reply
//   onAlternatives({side, at})           shows the button that asks what else could stand at the cursor
//   link()                 the address that restores this view
//   onSave(), saveNote     has the reply kept, and resolves to the address that shows it again; what is kept, as text

// In the shell page (standalone.py), to be replaced by the payload; joined here, because the shell holds this script too.
const PLACEHOLDER = JSON.stringify(["payload", "goes", "here"].join(" "));

function mountTokenView(root, options = {}) {
  const part = (name) => root.querySelector('[data-part="' + name + '"]');
  const view = part("view");

  let model = null; // the newest payload, read; or null
  let newest = null; // the payload itself, for the export
  let userChoices = {}; // outlive a trace
  let choices = null; // in effect for this trace
  let traits = []; // shown
  let scale = 1;
  let committed = 0; // the cursor while the mouse previews nothing
  let pinned = false; // set by the user: a stream no longer moves it
  let pinnedSide = 0; // the side whose text was clicked
  let carried = false; // the trait was kept from the previous reply
  let preview = null; // position under the mouse
  let span = null; // [from, to], inclusive
  let spanShown = null; // the span that the panes show
  let panes = [];
  let mounted = false;

  const last = () => model.length - 1;
  // The newest token: of a branch, whose original is longer for a while, or of the longer of two replies.
  const newestAt = () => Math.max(...model.sides.filter((side) => !side.done).map((side) => side.shift + side.n - 1));
  const cursor = () => preview ?? committed;
  const trait = () => choices.trait;

  // ---- payloads -------------------------------------------------------------------------------------------------

  function update(payload) {
    const next = readPayload(payload);
    if (next === null) {
      if (model) reportState();
      model = newest = null;
      playback.stop();
      part("empty").textContent = payload
        ? "This trace cannot be shown: its lists differ in length, or its version is unknown."
        : options.emptyText || "Nothing to show yet.";
      view.dataset.state = "empty";
      return;
    }
    const before = model;
    const grown = continues(before, next);
    model = next;
    newest = payload;
    view.dataset.state = model.done ? "done" : "live";
    view.dataset.sides = model.sides.length;
    if (grown) grow(before);
    else start();
    if (wanted) restoreCursor();
    part("title").textContent = model.title || "Conversation";
    show(grown);
    if (model.done || !grown) reportState(); // another trace has another address, so that a reload while it is written restores it
  }

  function start() {
    playback.stop();
    span = preview = null;
    pinned = false;
    pinnedSide = 0;
    const previous = choices?.trait;
    choices = choicesFor(model, userChoices);
    if (!model.traits.includes(choices.trait)) {
      // A reply that is being written keeps the selected trait: its colours must not change while it is read.
      carried = model.traits.includes(previous);
      const current = carried ? previous : model.traits[0];
      choices.trait = model.done ? strongestTrait(model, choices, model.traits) ?? current : current;
    }
    if (panes.length !== model.sides.length) {
      panes = model.sides.map((_, s) => makePane(hooksOf(s)));
      part("panes").replaceChildren(...panes.map(({ element }) => element));
    }
    panes.forEach((pane, s) => pane.show(model.sides[s], false, model.sides.length === 1));
    committed = model.done ? opening() : newestAt();
    build();
    const position = committed;
    requestAnimationFrame(() => model && revealAt(position));
    // On a phone the view is below the controls: what was asked for must not appear out of sight.
    if (mounted && root.getBoundingClientRect().top > innerHeight * 0.6) view.scrollIntoView({ block: "start" });
  }

  function grow(before) {
    if (model.done && !before.done && !userChoices.trait && !carried) {
      choices.trait = strongestTrait(model, choices, traits) ?? trait(); // coloured by its strongest trait
      build();
    }
    panes.forEach((pane, s) => pane.show(model.sides[s], true, model.sides.length === 1));
    if (!pinned && !model.done) committed = newestAt();
    if (model.done === before.done) return;
    build();
    if (!pinned) {
      committed = opening();
      const position = committed;
      requestAnimationFrame(() => model && revealAt(position));
    }
  }

  // The first position of the cursor: the focus of the payload, else the highest score.
  function opening() {
    if (model.focus !== null) return Math.min(Math.max(model.start + model.focus, 0), last());
    return peakOf(model, trait(), choices);
  }

  // The parts that depend on the trace and the choices, but not on the cursor.
  function build() {
    traits = model.traits.filter((name) => !choices.hidden.includes(name));
    if (!traits.includes(trait())) choices.trait = traits[0];
    sheet.build(model, choices);
    bars.build(model, traits, choices);
    part("chips").replaceChildren(
      ...traits.map((name) => {
        const chip = make("button", "tv-chip");
        chip.type = "button";
        chip.dataset.trait = name;
        chip.setAttribute("aria-pressed", String(name === trait()));
        chip.append(bars.colourDot(model.traits.indexOf(name)), make("bdi", "", name));
        const found = onsetText(onsetSide(name)?.onsets[name]);
        if (found) chip.append(make("span", "tv-chip-onset", found));
        return chip;
      })
    );
  }

  // The side whose onset a trait's button names: the second where both have one.
  const onsetSide = (name) => model.sides.findLast((side) => onsetText(side.onsets?.[name]));

  function show(same = true) {
    scale = scaleOf(model, choices, traits);
    const colours = model.sides.map((side) => (choices.difference ? sharedDifference : scoresOf)(model, side, trait(), choices));
    // The difference has a scale of its own: it is small beside the scores.
    const reach = choices.difference ? roundedUp(Math.max(0, ...colours.flatMap((of) => [...of].filter(Number.isFinite).map(Math.abs)))) : scale;
    part("key-low").textContent = "−" + reach;
    part("key-high").textContent = "+" + reach;
    part("key-unit").textContent = choices.difference
      ? model.sides[1].name + " minus " + model.sides[0].name + ", where both read the same words: " + UNITS[choices.kind]
      : UNITS[choices.kind];
    part("key-unit").title = UNITS[choices.kind] + (choices.kind === "specific" ? ": " + model.traits.join(", ") : "");
    bars.highlight(trait());
    const sinks = model.sides.map((side) => sinksOf(side, blockOf(model, trait(), choices), choices.alignment));
    panes.forEach((pane, s) => {
      pane.paint(colours[s], reach, sinks[s]);
      pane.showOnset(trait());
      pane.mark(marksOf(model, model.sides[s], traits, choices));
      pane.text.classList.toggle("tv-plain", !choices.special);
    });
    timeline.show({ model, traits, trait: trait(), choices, scale }, same);
    part("legend").textContent = legend(timeline.chart(), sinks.some((of) => of.includes(1)));
    showLines(timeline.chart());
    showCursor();
    branching.show(trait());
  }

  function legend(chart, sinks) {
    const some = chart.left_out ? ": " + trait() + ", and any trait whose mean of " + SUSTAINED + " tokens rises above the grey band." : ", one per trait.";
    const parts = ["Lines" + some + " Unit: " + UNITS[choices.kind] + "."];
    if (choices.smooth > 1) parts.push("Mean of the last " + choices.smooth + " tokens.");
    else if (chart.window > 1) parts.push("The lines are smoothed: each point is the mean of the last " + chart.window + " tokens.");
    if (inDeviations(choices.kind)) parts.push("Grey band: ±2, where most tokens of neutral replies lie.");
    if (choices.kind === "raw") parts.push("Grey band: neutral mean ± 2 standard deviations of " + trait() + ".");
    if (choices.kind === "cosine") parts.push("Zero is not neutral for cosines; it is for z.");
    parts.push("Dotted line: start of the reply.");
    const onset = model.sides.some((side) => Number.isInteger(side.onsets?.[trait()]?.onset));
    if (onset) parts.push("Tick and shaded band: where " + trait() + " rises, with its interval.");
    if (chart.sides.some((side) => side.lines.some((line) => line.clipped.length))) parts.push("Triangle: a prompt or special token beyond the range.");
    const doubles = model.sides.some((side) => Number.isInteger(side.onsets?.[trait()]?.doubles));
    if (doubles) parts.push((onset ? "Tick alone" : "Tick") + ": where " + trait() + ", high at the first token, more than doubles.");
    if (sinks) parts.push("Hatched: sink tokens, whose state is far outside the usual range; they have no score.");
    return parts.join(" ");
  }

  // Offers the lines that are left out, or to leave them out again.
  function showLines({ left_out }) {
    part("lines").hidden = choices.lines !== "all" && left_out === 0;
    part("lines").textContent = choices.lines === "all" ? "Fewer lines" : "Show all " + traits.length + " lines";
  }
  part("lines").addEventListener("click", () => choose({ lines: choices.lines === "all" ? "some" : "all" }));

  // ---- choices --------------------------------------------------------------------------------------------------

  const sheet = makeChoices(part, { onChange: choose });
  function choose(change) {
    if (!model) return;
    userChoices = { ...userChoices, ...change };
    choices = choicesFor(model, { ...userChoices, trait: userChoices.trait ?? trait() });
    const open = document.activeElement?.closest?.(".tv-sheet") ? document.activeElement : null;
    const [name, text] = [open?.name, open?.closest("label")?.textContent];
    build();
    show();
    // The sheet was rebuilt: restore the focus.
    const again = [...part("choices").querySelectorAll("select, input")].find((control) =>
      name ? control.name === name : control.closest("label").textContent === text
    );
    if (open) again?.focus();
    reportState();
  }
  const chooseTrait = (name) => choose({ trait: name });
  part("chips").addEventListener("click", (event) => {
    const chip = event.target.closest("[data-trait]");
    if (!chip) return;
    const name = chip.dataset.trait;
    chooseTrait(name);
    const side = onsetSide(name);
    const mark = side && onsetMark(side, choices);
    if (mark) pinAt(mark.index + side.shift); // the button goes to the onset that it names
    [...part("chips").children].find((other) => other.dataset.trait === name)?.focus();
  });
  const bars = makeBars(part, { onTrait: chooseTrait });
  const readout = makeReadout(part);

  wireMenus(view);

  // ---- the cursor -----------------------------------------------------------------------------------------------

  const hooksOf = (s) => ({
    onPreview: (index) => previewAt(index === null ? null : index + model.sides[s].shift, s),
    onPick(index) {
      const position = index + model.sides[s].shift;
      if (pinned && position === committed && !span) follow();
      else pinAt(position, s);
    },
    onSpan: (from, to) => selectSpan(from + model.sides[s].shift, to + model.sides[s].shift),
    onKey,
    onScroll() {
      if (panes.length < 2 || !model) return;
      const position = panes[s].topIndex() + model.sides[s].shift;
      panes[1 - s].scrollTopTo(position - model.sides[1 - s].shift);
    },
  });

  // `from`: the side under the mouse, whose text must not move.
  function previewAt(position, from = null) {
    if (preview === position) return;
    preview = position;
    showCursor();
    if (from === null && (position !== null || pinned)) revealAt(cursor());
  }

  function pinAt(position, from = null) {
    committed = Math.min(Math.max(position, 0), last());
    pinned = true;
    preview = null;
    if (from !== null) pinnedSide = from;
    if (span && (committed < span[0] || committed > span[1])) span = null;
    showCursor();
    revealAt(committed, from);
    reportState();
  }

  function follow() {
    pinned = false;
    preview = span = null;
    if (!model.done) committed = newestAt();
    showCursor();
    if (!model.done) revealAt(committed);
    reportState();
  }

  function selectSpan(from, to) {
    playback.stop();
    span = [Math.min(from, to), Math.max(from, to)];
    committed = Math.min(Math.max(committed, span[0]), span[1]);
    pinned = true;
    preview = null;
    showCursor();
    reportState();
  }

  function revealAt(position, except = null) {
    panes.forEach((pane, s) => s === except || pane.reveal(position - model.sides[s].shift));
  }

  part("pin").addEventListener("click", () => (pinned ? follow() : pinAt(cursor())));
  const branching = makeBranching(part, options, () => ({ model, position: committed, side: pinnedSide, trait: choices?.trait }));

  const ZOOM = { "+": 0.5, "=": 0.5, "-": 2, 0: Infinity };
  const STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
  function onKey(event) {
    if (!model || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.key in STEPS ? cursor() + STEPS[event.key] : { Home: 0, End: last() }[event.key];
    if (event.key === "Escape") follow();
    else if (event.key in ZOOM) timeline.zoom(ZOOM[event.key]);
    else if (target === undefined) return;
    else if (event.shiftKey) {
      // The end of the span at the cursor moves.
      const to = Math.min(Math.max(target, 0), last());
      const fixed = !span ? cursor() : cursor() === span[0] ? span[1] : span[0];
      committed = to;
      selectSpan(fixed, to);
      committed = to;
      showCursor();
      revealAt(to);
    } else {
      playback.stop();
      span = null;
      pinAt(target);
    }
    event.preventDefault();
  }
  part("thumb").addEventListener("keydown", onKey);

  // ---- play -----------------------------------------------------------------------------------------------------

  const playback = makePlayback(part("play"), {
    ready: () => model !== null,
    begin() {
      if (committed >= last()) committed = 0;
      span = null;
    },
    step() {
      if (!model || committed >= last()) return false;
      pinAt(committed + 1);
      return true;
    },
  });

  // ---- what the panels show at the cursor ------------------------------------------------------------------------------------

  function showCursor() {
    const position = cursor();
    panes.forEach((pane, s) => {
      const { shift } = model.sides[s];
      pane.moveTo(position - shift, pinned ? committed - shift : -1);
    });
    timeline.moveTo(position);
    timeline.showSpan(span);
    if (span !== spanShown) {
      spanShown = span;
      panes.forEach((pane, s) => (span ? pane.showSpan(span[0] - model.sides[s].shift, span[1] - model.sides[s].shift) : pane.showSpan(null)));
    }
    branching.enable();
    const shownSpan = preview === null ? span : null; // the mouse reads single tokens, also while a span is selected
    const values = model.sides.map((side) => (name) => {
      const scores = scoresOf(model, side, name, choices);
      return shownSpan ? meanOver(scores, shownSpan[0] - side.shift, shownSpan[1] - side.shift) : scores[position - side.shift];
    });
    const texts = model.sides.map((side) => {
      if (shownSpan) return shownSpan[1] - shownSpan[0] + 1 + " tokens";
      const text = side.tokens[position - side.shift];
      return text === undefined ? "(no token here)" : visibleToken(text);
    });
    bars.show(values, scale, trait(), texts);
    readout.show({
      model, trait: trait(), choices, position, span: shownSpan, texts, values, pinned,
      quiet: !pinned || preview !== null || playback.playing(), // nor is every token of a stream announced
    });
  }

  // ---- export ---------------------------------------------------------------------------------------------------

  const formats = {
    json: ["JSON, the displayed scores", () => download(fileName(model, "json"), JSON.stringify(exported(model, traits, choices), null, 1), "application/json")],
    csv: ["CSV, one row per token", () => download(fileName(model, "csv"), exportedTable(model, traits, choices), "text/csv;charset=utf-8")],
    png: ["PNG, text and chart", async () => {
      const style = getComputedStyle(view);
      const colours = { of: (name) => style.getPropertyValue(name).trim() };
      const chartImage = timeline.picture();
      download(fileName(model, "png"), await drawPicture(view, { model, trait: trait(), choices, scale, colours, chartImage }));
    }],
  };
  const shell = options.shell ?? (options.shellUrl && (async () => (await fetch(options.shellUrl)).text()));
  if (shell)
    formats.html = ["HTML, a page that works offline", async () => {
      const page = await shell();
      const text = JSON.stringify({ ...newest, view: { ...newest.view, ...state(), trait: trait() } });
      const safe = text.replace(/[<>&\u2028\u2029]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
      // A function as replacement: in a string, "$&" would be special.
      download(fileName(model, "html"), page.replace(PLACEHOLDER, () => safe), "text/html;charset=utf-8");
    }];
  if (options.link)
    formats.link = ["Copy a link to this view", async () => {
      await navigator.clipboard.writeText(options.link());
      readout.announce("Link copied.");
    }];
  if (options.link)
    formats.comment = ["Copy a link with a comment", async () => {
      const comment = prompt("A comment, shown over the view to whoever opens the link:");
      if (comment === null) return;
      await navigator.clipboard.writeText(options.link(comment));
      readout.announce("Link copied.");
    }];
  if (options.onSave)
    formats.save = ["Save this reply & copy its link", async () => {
      await navigator.clipboard.writeText(await options.onSave());
      readout.announce("Reply saved, link copied.");
    }];
  const doneLabels = { link: "Copied", comment: "Copied", save: "Saved, and link copied" };
  fillExportMenu(part("formats"), formats, { ready: () => model !== null, doneLabels });
  if (options.saveNote) part("formats").append(make("p", "tv-note", options.saveNote));

  // ---- state ----------------------------------------------------------------------------------------------------

  // The choices and the cursor as plain values, without defaults.
  function state() {
    if (!model) return {};
    const kept = { ...userChoices };
    if (pinned) kept.at = committed;
    if (span) kept.span = span;
    return kept;
  }
  let reportTimer = null;
  function reportState() {
    if (!options.onState || reportTimer !== null) return;
    reportTimer = setTimeout(() => {
      reportTimer = null;
      options.onState(state());
    }, 150); // browsers limit how often the address may change
  }

  let wanted = null; // the cursor of a link whose trace has not arrived yet
  function restore(saved) {
    const { at, span: savedSpan, ...rest } = saved ?? {};
    userChoices = { ...userChoices, ...rest };
    wanted = Number.isInteger(at) || Array.isArray(savedSpan) ? { at, savedSpan } : null;
    if (!model) return;
    choices = choicesFor(model, { ...userChoices, trait: model.traits.includes(userChoices.trait) ? userChoices.trait : trait() });
    build();
    if (wanted) restoreCursor();
    show();
  }

  function restoreCursor() {
    if (!model.done) return;
    const { at, savedSpan } = wanted;
    wanted = null;
    const inside = (position) => Number.isInteger(position) && position >= 0 && position <= last();
    if (Array.isArray(savedSpan) && savedSpan.every(inside)) {
      span = [Math.min(...savedSpan), Math.max(...savedSpan)];
      committed = span[0];
      pinned = true;
    }
    if (inside(at)) {
      committed = at;
      pinned = true;
    }
    requestAnimationFrame(() => model && revealAt(committed));
  }

  // ---- theme, chart ---------------------------------------------------------------------------------------------

  const timeline = makeTimeline(part, {
    onPreview: (position) => previewAt(position),
    onPick(position) {
      playback.stop();
      span = null;
      pinAt(position);
    },
    onSpan: selectSpan,
  });

  const restyled = new MutationObserver(() => timeline.restyle());
  for (const node of [document.documentElement, document.body])
    restyled.observe(node, { attributes: true, attributeFilter: ["class", "data-theme"] });

  update(null);
  setTimeout(() => (mounted = true)); // the first payload comes with the page
  return { update, state, restore, branch: branching.branch, alternatives: branching.alternatives, chart: () => timeline.chart() };
}
