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

function mountTokenView(root, options = {}) {
  const part = (name) => root.querySelector('[data-part="' + name + '"]');
  const view = part("view");

  let model = null; // the newest payload, read; or null
  let newest = null; // the payload itself, for the export
  let userChoices = {}; // outlive a trace
  let choices = null; // in effect for this trace
  let traits = []; // shown
  let scale = 1;
  let carried = false; // the trait was kept from the previous reply
  let spanShown = null; // the span that the panes show
  let panes = [];
  let mounted = false;

  const trait = () => choices.trait;
  const keptTrait = () => (model.traits.includes(userChoices.trait) ? userChoices.trait : trait()); // the user's, if it is one here

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
    cursor.settle();
    part("title").textContent = model.title || "Conversation";
    show(grown);
    if (model.done || !grown) reportState(); // another trace has another address, so that a reload while it is written restores it
  }

  function start() {
    playback.stop();
    cursor.begin();
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
    build();
    cursor.open(model.done ? opening() : cursor.newest());
    // On a phone the view is below the controls: what was asked for must not appear out of sight.
    if (mounted && root.getBoundingClientRect().top > innerHeight * 0.6) view.scrollIntoView({ block: "start" });
  }

  function grow(before) {
    if (model.done && !before.done && !userChoices.trait && !carried) {
      choices.trait = strongestTrait(model, choices, traits) ?? trait(); // coloured by its strongest trait
      build();
    }
    panes.forEach((pane, s) => pane.show(model.sides[s], true, model.sides.length === 1));
    if (!model.done) cursor.follow();
    if (model.done === before.done) return;
    build();
    if (!cursor.where().pinned) cursor.open(opening());
  }

  // The first position of the cursor: the focus of the payload, else the highest score.
  function opening() {
    if (model.focus !== null) return Math.min(Math.max(model.start + model.focus, 0), model.length - 1);
    return peakOf(model, trait(), choices);
  }

  // The parts that depend on the trace and the choices, but not on the cursor.
  function build() {
    traits = model.traits.filter((name) => !choices.hidden.includes(name));
    if (!traits.includes(trait())) choices.trait = traits[0];
    sheet.build(model, choices);
    bars.build(model, traits, choices);
    chips.build(model, traits, choices, bars.colourDot);
  }

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
      pane.showOnset(trait(), movedBy(model.sides[s], choices));
      pane.mark(marksOf(model, model.sides[s], traits, choices));
      pane.text.classList.toggle("tv-plain", !choices.special);
    });
    timeline.show({ model, traits, trait: trait(), choices, scale }, same);
    part("legend").textContent = legendOf({ model, trait: trait(), choices }, timeline.chart(), sinks.some((of) => of.includes(1)));
    showLines(timeline.chart());
    turns.show({ model, trait: trait(), choices, scale });
    showCursor();
    branching.show(trait());
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
    choices = choicesFor(model, { ...userChoices, trait: keptTrait() });
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
  const chips = makeChips(part("chips"), { onTrait: chooseTrait, onGo: (position) => cursor.pin(position) });
  const bars = makeBars(part, { onTrait: chooseTrait });
  const readout = makeReadout(part);

  wireMenus(view);

  // ---- the cursor -----------------------------------------------------------------------------------------------

  const reveal = (position, except = null) => panes.forEach((pane, s) => s === except || pane.reveal(position - model.sides[s].shift));

  const cursor = makeCursor(() => model, {
    moved: showCursor,
    settled: reportState,
    reveal,
    halt: () => playback.stop(),
    zoom: (factor) => timeline.zoom(factor),
  });

  const hooksOf = (s) => ({
    onPreview: (index) => cursor.previewAt(index === null ? null : index + model.sides[s].shift, s),
    onPick: (index) => cursor.click(index + model.sides[s].shift, s),
    onSpan: (from, to) => cursor.select(from + model.sides[s].shift, to + model.sides[s].shift),
    onKey: cursor.onKey,
    onScroll() {
      if (panes.length < 2 || !model) return;
      const position = panes[s].topIndex() + model.sides[s].shift;
      panes[1 - s].scrollTopTo(position - model.sides[1 - s].shift);
    },
  });

  part("pin").addEventListener("click", cursor.toggle);
  part("thumb").addEventListener("keydown", cursor.onKey);
  const turns = makeTurns(part("turns"), { onPick: cursor.go });
  const branching = makeBranching(part, options, () => {
    const { committed, side } = cursor.where();
    return { model, position: committed, side, trait: choices?.trait };
  });

  // ---- play -----------------------------------------------------------------------------------------------------

  const playback = makePlayback(part("play"), {
    ready: () => model !== null,
    begin: cursor.rewind,
    step: cursor.forward,
  });

  // ---- what the panels show at the cursor ------------------------------------------------------------------------------------

  function showCursor() {
    const { position, committed, pinned, previewed, span } = cursor.where();
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
    turns.moveTo(position);
    branching.enable();
    const shownSpan = previewed ? null : span; // the mouse reads single tokens, also while a span is selected
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
      quiet: !pinned || previewed || playback.playing(), // nor is every token of a stream announced
    });
  }

  // ---- export ---------------------------------------------------------------------------------------------------

  const formats = exportFormats(view, options, {
    scene: () => ({ model, payload: newest, traits, trait: trait(), choices, scale, state: state() }),
    picture: () => timeline.picture(),
    announce: (sentence) => readout.announce(sentence),
  });
  const doneLabels = { link: "Copied", comment: "Copied", save: "Saved, and link copied" };
  fillExportMenu(part("formats"), formats, { ready: () => model !== null, doneLabels });
  if (options.saveNote) part("formats").append(make("p", "tv-note", options.saveNote));

  // ---- state ----------------------------------------------------------------------------------------------------

  // The choices and the cursor as plain values, without defaults; `at` and `span` count tokens of the reply.
  function state() {
    if (!model) return {};
    return { ...userChoices, ...cursor.state() };
  }
  let reportTimer = null;
  function reportState() {
    if (!options.onState || reportTimer !== null) return;
    reportTimer = setTimeout(() => {
      reportTimer = null;
      options.onState(state());
    }, 150); // browsers limit how often the address may change
  }

  function restore(saved) {
    const { at, span, ...rest } = saved ?? {};
    userChoices = { ...userChoices, ...rest };
    cursor.want({ at, span });
    if (!model) return;
    choices = choicesFor(model, { ...userChoices, trait: keptTrait() });
    build();
    cursor.settle();
    show();
    reportState();
  }

  // ---- theme, chart ---------------------------------------------------------------------------------------------

  const timeline = makeTimeline(part, {
    onPreview: (position) => cursor.previewAt(position),
    onPick: (position) => cursor.go(position),
    onSpan: cursor.select,
  });

  const restyled = new MutationObserver(() => timeline.restyle());
  for (const node of [document.documentElement, document.body])
    restyled.observe(node, { attributes: true, attributeFilter: ["class", "data-theme"] });

  update(null);
  setTimeout(() => (mounted = true)); // the first payload comes with the page
  return { update, state, restore, branch: branching.branch, alternatives: branching.alternatives, chart: () => timeline.chart() };
}
