// The token view: one conversation, or two on one cursor. Runs under gr.HTML and in a standalone page.
//
// One rule keeps the panels together: showCursor() is the only function that tells the panels where the cursor is.
//
// mountTokenView(root, options) -> { update(payload), state(), restore(state) }
//   plotlyUrl or plotly    where plotly.js is, or plotly.js itself
//   emptyText              what stands there before there is anything
//   shellUrl               page without a payload, for the export as a file that works offline
//   onState(state)         after each change of what is shown: trait, cursor, span and choices, as plain values
//   onBranch({side, at})   there is a button "Branch here"; `at` counts tokens of the reply
//   link()                 the address that brings this view back

const PLAY_PAUSE = 90; // ms a token
// Where the shell page (standalone.py) takes a payload; joined here, so that the shell's own script does not hold it.
const SHELL_PLACE = JSON.stringify(["payload", "goes", "here"].join(" "));

function mountTokenView(root, options = {}) {
  const part = (name) => root.querySelector('[data-part="' + name + '"]');
  const view = part("view");

  let model = null; // the newest payload, read; or null
  let newest = null; // the payload itself, for the export
  let made = {}; // choices that the user has made, and that outlive a trace
  let choices = null; // those in force
  let traits = []; // that are shown
  let scale = 1;
  let position = 0; // the committed cursor, a place
  let pinned = false; // the user put it there: a stream no longer moves it
  let pinnedSide = 0; // in whose text
  let carried = false; // the trait is that of the reply before
  let preview = null; // the place under the mouse, while it is there
  let span = null; // [from, to] places, both included
  let spanShown = null; // in the text
  let panes = [];

  const last = () => model.length - 1;
  const cursor = () => preview ?? position;
  const trait = () => choices.trait;

  // ---- payloads -------------------------------------------------------------------------------------------------

  function update(payload) {
    const next = readPayload(payload);
    if (next === null) {
      if (model) told();
      model = newest = null;
      stop();
      part("empty").textContent = payload
        ? "This trace cannot be shown: its lists differ in length, or it is of another version."
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
    show();
    if (model.done || !grown) told(); // another trace has another address; who reloads while it is written has it again
  }

  function start() {
    stop();
    if (!model.done) timeline.clear();
    span = preview = null;
    pinned = false;
    pinnedSide = 0;
    const shown = choices?.trait;
    choices = choicesFor(model, made);
    if (!model.traits.includes(choices.trait)) {
      // A reply that is being written keeps the trait that was looked at: its colours must not change under the reader.
      carried = model.traits.includes(shown);
      const current = carried ? shown : model.traits[0];
      choices.trait = model.done ? mostTelling(model, choices, model.traits) ?? current : current;
    }
    if (panes.length !== model.sides.length) {
      panes = model.sides.map((_, s) => makePane(hooksOf(s)));
      part("panes").replaceChildren(...panes.map(({ element }) => element));
    }
    panes.forEach((pane, s) => pane.show(model.sides[s], false, model.sides.length === 1));
    position = model.done ? opening() : last();
    build();
    const place = position;
    requestAnimationFrame(() => model && revealAt(place));
    // On a phone the view lies below the controls: a reply that starts must not stream out of sight.
    if (!model.done && root.getBoundingClientRect().top > innerHeight * 0.5) view.scrollIntoView({ block: "start" });
  }

  function grow(before) {
    if (model.done && !before.done && !made.trait && !carried) {
      choices.trait = mostTelling(model, choices, traits) ?? trait(); // coloured by what it shows most
      build();
    }
    panes.forEach((pane, s) => pane.show(model.sides[s], true, model.sides.length === 1));
    if (!pinned && last() >= before.length) position = last();
    if (model.done === before.done) return;
    build();
    if (!pinned) {
      position = opening();
      const place = position;
      requestAnimationFrame(() => model && revealAt(place));
    }
  }

  // Where the cursor opens: where the payload says, else on the strongest moment.
  function opening() {
    if (model.focus !== null) return Math.min(Math.max(model.start + model.focus, 0), last());
    return peakOf(model, trait(), choices);
  }

  // What does not depend on the cursor, and what of it changes with the choices.
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
        return chip;
      })
    );
  }

  function show() {
    scale = scaleOf(model, choices, traits);
    part("key-low").textContent = "−" + scale;
    part("key-high").textContent = "+" + scale;
    part("key-unit").textContent = UNITS[choices.kind];
    part("legend").textContent = legend();
    bars.mark(trait());
    panes.forEach((pane, s) => {
      pane.paint(scoresOf(model, model.sides[s], trait(), choices), scale);
      pane.showOnset(trait());
      pane.text.classList.toggle("tv-plain", !choices.special);
    });
    timeline.show({ model, traits, trait: trait(), choices, scale });
    showCursor();
    part("branch").hidden = !options.onBranch;
  }

  function legend() {
    const parts = ["One line a trait, colours as in the buttons, " + UNITS[choices.kind] + "."];
    if (choices.smooth > 1) parts.push("Mean of the last " + choices.smooth + " tokens.");
    if (choices.kind === "z") parts.push("Grey band: within ±2, where single tokens of neutral talk mostly lie.");
    if (choices.kind === "raw") parts.push("Grey band: neutral mean ± 2 standard deviations of " + trait() + ".");
    if (choices.kind === "cosine") parts.push("Zero is not neutral here; z says what is.");
    parts.push("Dotted line: the reply begins.");
    const onset = model.sides.some((side) => Number.isInteger(side.onsets?.[trait()]?.onset));
    if (onset) parts.push("Tick and shade: " + trait() + " sets in, and the interval of that.");
    return parts.join(" ");
  }

  // ---- choices --------------------------------------------------------------------------------------------------

  const sheet = makeChoices(part, { onChange: choose });
  function choose(change) {
    if (!model) return;
    made = { ...made, ...change };
    choices = choicesFor(model, { ...made, trait: made.trait ?? trait() });
    const open = document.activeElement?.closest?.(".tv-sheet") ? document.activeElement : null;
    const [name, text] = [open?.name, open?.closest("label")?.textContent];
    build();
    show();
    // The sheet was built anew: what had the focus gets it back.
    const again = [...part("choices").querySelectorAll("select, input")].find((control) =>
      name ? control.name === name : control.closest("label").textContent === text
    );
    if (open) again?.focus();
    told();
  }
  const chooseTrait = (name) => choose({ trait: name });
  part("chips").addEventListener("click", (event) => {
    const chip = event.target.closest("[data-trait]");
    if (!chip) return;
    const name = chip.dataset.trait;
    chooseTrait(name);
    [...part("chips").children].find((other) => other.dataset.trait === name)?.focus();
  });
  const bars = makeBars(part, { onTrait: chooseTrait });

  for (const menu of view.querySelectorAll(".tv-menu"))
    menu.addEventListener("toggle", () => {
      for (const other of view.querySelectorAll(".tv-menu[open]")) if (menu.open && other !== menu) other.open = false;
    });
  // A sheet closes when something else is used, and on Escape.
  addEventListener("pointerdown", (event) => {
    for (const menu of view.querySelectorAll(".tv-menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  view.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && event.target.closest?.(".tv-menu[open]");
    if (!menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
    event.stopPropagation();
  });

  // ---- the cursor -----------------------------------------------------------------------------------------------

  const hooksOf = (s) => ({
    onPreview: (index) => previewAt(index === null ? null : index + model.sides[s].shift, s),
    onPick(index) {
      const place = index + model.sides[s].shift;
      if (pinned && place === position && !span) follow();
      else pinAt(place, s);
    },
    onSpan: (from, to) => markSpan(from + model.sides[s].shift, to + model.sides[s].shift),
    onKey,
    onScroll() {
      if (panes.length < 2 || !model) return;
      const place = panes[s].topIndex() + model.sides[s].shift;
      panes[1 - s].scrollTopTo(place - model.sides[1 - s].shift);
    },
  });

  // `from`: the side that the mouse is over, whose text must not move under it.
  function previewAt(place, from = null) {
    if (preview === place) return;
    preview = place;
    showCursor();
    if (from === null && (place !== null || pinned)) revealAt(cursor());
  }

  function pinAt(place, from = null) {
    position = Math.min(Math.max(place, 0), last());
    pinned = true;
    preview = null;
    if (from !== null) pinnedSide = from;
    if (span && (position < span[0] || position > span[1])) span = null;
    showCursor();
    revealAt(position, from);
    told();
  }

  function follow() {
    pinned = false;
    preview = span = null;
    if (!model.done) position = last();
    showCursor();
    if (!model.done) revealAt(position);
    told();
  }

  function markSpan(from, to) {
    stop();
    span = [Math.min(from, to), Math.max(from, to)];
    position = Math.min(Math.max(position, span[0]), span[1]);
    pinned = true;
    preview = null;
    showCursor();
    told();
  }

  function revealAt(place, except = null) {
    panes.forEach((pane, s) => s === except || pane.reveal(place - model.sides[s].shift));
  }

  // What the model itself said, not the end of its turn.
  const branchable = (side, place) => place >= model.start && side.roles[place - side.shift] === "assistant";
  part("pin").addEventListener("click", () => (pinned ? follow() : pinAt(cursor())));
  part("branch").addEventListener("click", () => {
    // From the text that was clicked into, if it has a token there.
    const here = (side) => side && branchable(side, position);
    const s = here(model.sides[pinnedSide]) ? pinnedSide : model.sides.findIndex(here);
    options.onBranch?.({ side: s, at: position - model.start, trait: trait() });
  });

  const STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
  function onKey(event) {
    if (!model || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.key in STEPS ? cursor() + STEPS[event.key] : { Home: 0, End: last() }[event.key];
    if (event.key === "Escape") follow();
    else if (target === undefined) return;
    else if (event.shiftKey) {
      // The end of the span that the cursor is at moves along.
      const to = Math.min(Math.max(target, 0), last());
      const fixed = !span ? cursor() : cursor() === span[0] ? span[1] : span[0];
      position = to;
      markSpan(fixed, to);
      position = to;
      showCursor();
      revealAt(to);
    } else {
      stop();
      span = null;
      pinAt(target);
    }
    event.preventDefault();
  }
  part("thumb").addEventListener("keydown", onKey);

  // ---- play -----------------------------------------------------------------------------------------------------

  let playing = null;
  function stop() {
    clearInterval(playing);
    playing = null;
    part("play").setAttribute("aria-pressed", "false");
    part("play").setAttribute("aria-label", "Play");
  }
  part("play").addEventListener("click", () => {
    if (!model) return;
    if (playing !== null) return stop();
    if (position >= last()) position = 0;
    span = null;
    part("play").setAttribute("aria-pressed", "true");
    part("play").setAttribute("aria-label", "Pause");
    playing = setInterval(() => {
      if (!model || position >= last()) return stop();
      pinAt(position + 1);
    }, PLAY_PAUSE);
  });

  // ---- what is at the cursor ------------------------------------------------------------------------------------

  function showCursor() {
    const place = cursor();
    panes.forEach((pane, s) => {
      const { shift } = model.sides[s];
      pane.moveTo(place - shift, pinned ? position - shift : -1);
    });
    timeline.moveTo(place);
    timeline.showSpan(span);
    if (span !== spanShown) {
      spanShown = span;
      panes.forEach((pane, s) => (span ? pane.showSpan(span[0] - model.sides[s].shift, span[1] - model.sides[s].shift) : pane.showSpan(null)));
    }
    // Not hidden meanwhile: what stands below must not jump.
    part("branch").disabled = !model.done || !model.sides.some((side) => branchable(side, position));
    const marked = preview === null ? span : null; // the mouse reads single tokens, also while a span is marked
    const values = model.sides.map((side) => (name) => {
      const scores = scoresOf(model, side, name, choices);
      return marked ? meanOver(scores, marked[0] - side.shift, marked[1] - side.shift) : scores[place - side.shift];
    });
    const words = model.sides.map((side) => {
      if (marked) return marked[1] - marked[0] + 1 + " tokens";
      const text = side.tokens[place - side.shift];
      return text === undefined ? "(no token here)" : visibleToken(text);
    });
    bars.show(values, scale, trait(), words);
    showPlace(place, marked, values, words);
  }

  function showPlace(place, marked, values, words) {
    const inReply = place - model.start + 1;
    const where = marked
      ? "Tokens " + (marked[0] + 1) + " to " + (marked[1] + 1) + " of " + model.length + " · means"
      : "Token " + (place + 1) + " of " + model.length + (inReply > 0 ? " · " + inReply + " of the reply" : " · prompt");
    const facts = marked ? "" : factsAt(place);
    const state = choices.alignment === "before" ? "in the state that chose it" : "after reading it";
    part("place").textContent = where + (facts ? "\n" + facts : "");
    part("note").textContent =
      trait() + ": " + UNITS[choices.kind] + ", " + state +
      (choices.smooth > 1 ? ", mean of the last " + choices.smooth + " tokens" : "");
    part("pin").textContent = marked ? "Clear" : pinned ? (model.done ? "Unpin" : "Follow") : "Pin";
    part("pin").setAttribute("aria-pressed", String(pinned));
    const thumb = part("thumb");
    const read = model.sides
      .map((side, s) => (model.sides.length > 1 ? side.name + " " : "") + words[s] + " " + scoreText(values[s](trait())))
      .join(", ");
    thumb.setAttribute("aria-valuemax", model.length);
    thumb.setAttribute("aria-valuenow", place + 1);
    thumb.setAttribute("aria-valuetext", where + ", " + trait() + ": " + read);
    if (pinned && preview === null && playing === null) announce(where + ": " + trait() + " " + read);
  }

  // Role and id of the token, of the first side that has one there.
  function factsAt(place) {
    const side = model.sides.find((one) => one.tokens[place - one.shift] !== undefined);
    if (!side) return "";
    const i = place - side.shift;
    return side.roles[i] + (side.special[i] ? " · special" : "") + (side.ids[i] < 0 ? "" : " · id " + side.ids[i]);
  }

  // Screen readers hear where a step ended, not every token of a drag, and not the newest token of a stream.
  let speaking = null;
  function announce(sentence) {
    clearTimeout(speaking);
    speaking = setTimeout(() => (part("live").textContent = sentence), 300);
  }

  // ---- export ---------------------------------------------------------------------------------------------------

  const FORMATS = {
    json: ["JSON, the displayed scores", () => download(fileName(model, "json"), JSON.stringify(exported(model, traits, choices), null, 1), "application/json")],
    csv: ["CSV, one row a token", () => download(fileName(model, "csv"), exportedTable(model, traits, choices), "text/csv;charset=utf-8")],
    png: ["PNG, text and chart", async () => {
      const style = getComputedStyle(view);
      const colours = { of: (name) => style.getPropertyValue(name).trim() };
      const chartImage = await timeline.picture();
      download(fileName(model, "png"), await drawPicture(view, { model, trait: trait(), choices, scale, colours, chartImage }));
    }],
    html: ["HTML, a page that works offline", async () => {
      const shell = await (await fetch(options.shellUrl)).text();
      const text = JSON.stringify({ ...newest, view: { ...newest.view, ...state(), trait: trait() } });
      const safe = text.replace(/[<>&\u2028\u2029]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
      // A function: in a text as replacement "$&" would mean something.
      download(fileName(model, "html"), shell.replace(SHELL_PLACE, () => safe), "text/html;charset=utf-8");
    }],
    link: ["Copy a link to this view", async () => {
      await navigator.clipboard.writeText(options.link());
      announce("The link is copied.");
    }],
  };
  const offered = ["json", "csv", "png", ...(options.shellUrl ? ["html"] : []), ...(options.link ? ["link"] : [])];
  part("formats").append(
    ...offered.map((format) => {
      const button = make("button", "tv-item", FORMATS[format][0]);
      button.type = "button";
      button.dataset.format = format;
      button.addEventListener("click", async () => {
        if (!model) return;
        const label = FORMATS[format][0];
        try {
          await FORMATS[format][1]();
          button.textContent = format === "link" ? "Copied" : label;
        } catch (error) {
          button.textContent = "That did not work: " + error.message;
        }
        setTimeout(() => (button.textContent = label), 4000);
      });
      return button;
    })
  );

  // ---- state ----------------------------------------------------------------------------------------------------

  // What was chosen and where the cursor is, as plain values; what is as it always is at first is left out.
  function state() {
    if (!model) return {};
    const kept = { ...made };
    if (pinned) kept.at = position;
    if (span) kept.span = span;
    return kept;
  }
  let telling = null;
  function told() {
    if (!options.onState || telling !== null) return;
    telling = setTimeout(() => {
      telling = null;
      options.onState(state());
    }, 150); // browsers refuse more than some addresses a second
  }

  let wanted = null; // a cursor that a link asked for, before its trace was there
  function restore(saved) {
    const { at, span: marked, ...rest } = saved ?? {};
    made = { ...made, ...rest };
    wanted = Number.isInteger(at) || Array.isArray(marked) ? { at, marked } : null;
    if (!model) return;
    choices = choicesFor(model, { ...made, trait: model.traits.includes(made.trait) ? made.trait : trait() });
    build();
    if (wanted) restoreCursor();
    show();
  }

  function restoreCursor() {
    if (!model.done) return;
    const { at, marked } = wanted;
    wanted = null;
    if (Array.isArray(marked) && marked.every((place) => Number.isInteger(place) && place >= 0 && place <= last())) {
      span = [Math.min(...marked), Math.max(...marked)];
      position = span[0];
      pinned = true;
    }
    if (Number.isInteger(at) && at >= 0 && at <= last()) {
      position = at;
      pinned = true;
    }
    requestAnimationFrame(() => model && revealAt(position));
  }

  // ---- theme, chart ---------------------------------------------------------------------------------------------

  const timeline = makeTimeline(part, {
    onPreview: (place) => previewAt(place),
    onPick(place) {
      stop();
      span = null;
      pinAt(place);
    },
    onSpan: markSpan,
  });

  const restyled = new MutationObserver(() => timeline.restyle());
  for (const node of [document.documentElement, document.body])
    restyled.observe(node, { attributes: true, attributeFilter: ["class", "data-theme"] });

  if (options.plotly) timeline.usePlotly(options.plotly);
  else if (options.plotlyUrl)
    // After the first paint: the chart is the one part that needs plotly.js, and it is five megabytes.
    setTimeout(() => {
      loadPlotly(options.plotlyUrl).then(timeline.usePlotly, () => (view.dataset.chart = "missing"));
    }, 50);
  else view.dataset.chart = "missing";

  update(null);
  return { update, state, restore };
}
