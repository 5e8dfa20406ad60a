// The token view: conversation, bars, readout and timeline on one cursor. Runs under gr.HTML and in a standalone page.
//
// One rule keeps the panels together: whatever moves the cursor calls previewAt(), pinAt() or follow(), and each of
// those ends in showCursor(), the only function that tells the panels where the cursor is.
//
// mountTokenView(root, { plotlyUrl, plotly, emptyText, onPin }) -> { update(payload) }

function mountTokenView(root, options = {}) {
  const part = (name) => root.querySelector('[data-part="' + name + '"]');
  const view = part("view");
  const text = part("text");

  let payload = null; // the newest payload, or null
  let trait = null; // the trait that colours the text
  let traitChosen = false; // by the user, and therefore kept when another trace arrives
  let position = 0; // the committed cursor
  let pinned = false; // the user put it there: a stream no longer moves it
  let preview = null; // the token under the mouse, while it is there
  let spans = []; // one element a token
  let rows = []; // one bar a trait

  const lastToken = () => payload.tokens.length - 1;
  const cursor = () => preview ?? position;

  // ---- payloads -------------------------------------------------------------------------------------------------

  function update(next) {
    if (!fits(next)) {
      payload = null;
      part("empty").textContent = next?.tokens?.length
        ? "This trace cannot be shown: its lists differ in length."
        : options.emptyText || "Nothing to show yet.";
      view.dataset.state = "empty";
      return;
    }
    const grown = continues(payload, next);
    const before = payload;
    payload = next;
    view.dataset.state = next.done ? "done" : "live";
    if (grown) appendTokens(before);
    else startTrace();
    showHead();
    timeline.show(payload, trait);
    showCursor();
    showMore();
  }

  function startTrace() {
    if (!traitChosen || !payload.traits.includes(trait)) {
      traitChosen = false;
      const current = payload.traits.includes(trait) ? trait : payload.traits[0];
      trait = payload.done ? mostTelling(payload) ?? current : current;
    }
    pinned = false;
    preview = null;
    position = payload.done ? peakOf(payload, trait) : lastToken();
    text.replaceChildren();
    spans = [];
    showTraits();
    addTokens(0);
    paint();
    text.scrollTop = 0;
    requestAnimationFrame(() => reveal(position));
    // On a phone the view lies below the controls: a reply that starts must not stream out of sight.
    if (!payload.done && root.getBoundingClientRect().top > innerHeight * 0.5) view.scrollIntoView({ block: "start" });
  }

  function appendTokens(before) {
    const n = before.tokens.length;
    // The text of the last tokens may still change: a character can span several of them.
    for (let i = 0; i < n; i++) if (before.tokens[i] !== payload.tokens[i]) fillToken(spans[i], payload.tokens[i]);
    const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
    addTokens(n);
    if (payload.done && !before.done && !traitChosen) {
      trait = mostTelling(payload) ?? trait; // the reply is there: colour it by what it shows most
      markTrait();
    }
    paint();
    if (!pinned) {
      if (lastToken() >= n) position = lastToken();
      if (atEnd) text.scrollTop = text.scrollHeight;
    }
  }

  // ---- text -----------------------------------------------------------------------------------------------------

  const NAMES = { system: "System", user: "User", assistant: "Assistant", template: "" };

  function addTokens(from) {
    for (let i = from; i < payload.tokens.length; i++) {
      const role = payload.roles[i];
      let section = text.lastElementChild;
      if (!section || section.dataset.role !== role) {
        section = make("div", "tv-section");
        section.dataset.role = role;
        section.append(make("div", "tv-who", NAMES[role] ?? role), make("div", "tv-what"));
        section.lastElementChild.dir = "auto"; // right-to-left replies read from the right
        text.append(section);
      }
      const span = make("span", payload.special[i] ? "tv-tok tv-special" : "tv-tok");
      span.dataset.i = i;
      fillToken(span, payload.tokens[i]);
      spans.push(span);
      section.lastElementChild.append(span);
    }
  }

  // Colour by hue and strength; a line under (above zero) or over (below zero) the token says the same without colour.
  function paint() {
    const scores = payload.scores[trait] ?? [];
    spans.forEach((span, i) => {
      const score = scores[i] ?? 0;
      const strength = Math.min(Math.abs(score) / payload.scale, 1).toFixed(3);
      const key = (score < 0 ? "-" : "+") + strength;
      if (span.key === key) return;
      span.key = key;
      span.style.setProperty("--a", strength);
      span.classList.toggle("tv-low", score < 0);
    });
  }

  const indexAt = (event) => {
    const span = event.target.closest?.(".tv-tok");
    return span ? Number(span.dataset.i) : null;
  };
  text.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse" && payload) previewAt(indexAt(event), false);
  });
  text.addEventListener("pointerleave", () => payload && previewAt(null, false));
  text.addEventListener("click", (event) => {
    const index = payload ? indexAt(event) : null;
    if (index === null || !getSelection().isCollapsed) return; // marking text to copy is not a click
    if (pinned && index === position) follow();
    else pinAt(index, false);
  });

  function reveal(index) {
    const span = spans[index];
    if (!span) return;
    const box = text.getBoundingClientRect();
    const at = span.getBoundingClientRect();
    if (at.top < box.top + 8) text.scrollTop -= box.top + 24 - at.top;
    else if (at.bottom > box.bottom - 48) text.scrollTop += at.bottom + 48 - box.bottom; // clear of the fade
  }

  // The text fades out at the bottom while there is more to scroll to.
  function showMore() {
    text.classList.toggle("tv-more", text.scrollHeight - text.scrollTop - text.clientHeight > 4);
  }
  text.addEventListener("scroll", showMore, { passive: true });
  new ResizeObserver(showMore).observe(text);

  // ---- traits ---------------------------------------------------------------------------------------------------

  function showTraits() {
    part("chips").replaceChildren(
      ...payload.traits.map((name, index) => {
        const chip = make("button", "tv-chip");
        chip.type = "button";
        chip.dataset.index = index;
        const dot = make("span", "tv-dot");
        dot.style.setProperty("--dot", "var(--tv-c" + (index % N_COLOURS) + ")");
        chip.append(dot, make("bdi", "", name));
        return chip;
      })
    );
    rows = payload.traits.map((name, index) => {
      const row = make("div", "tv-row");
      row.setAttribute("role", "listitem");
      row.dataset.index = index;
      const dot = make("span", "tv-dot");
      dot.style.setProperty("--dot", "var(--tv-c" + (index % N_COLOURS) + ")");
      const bar = make("span", "tv-bar");
      const fill = make("span", "tv-fill");
      bar.append(fill);
      const value = make("span", "tv-value");
      row.append(dot, make("bdi", "tv-name", name), bar, value);
      const block = payload.blocks?.[name];
      row.title = name + (block === undefined ? "" : block < 0 ? ", block unknown" : ", read at block " + block);
      return { row, fill, value };
    });
    part("bars").replaceChildren(...rows.map(({ row }) => row));
    markTrait();
  }

  function markTrait() {
    for (const chip of part("chips").children)
      chip.setAttribute("aria-pressed", String(payload.traits[chip.dataset.index] === trait));
    for (const { row } of rows) row.classList.toggle("tv-chosen", payload.traits[row.dataset.index] === trait);
  }

  function chooseTrait(event) {
    const item = event.target.closest("[data-index]");
    if (!item || !payload) return;
    trait = payload.traits[item.dataset.index];
    traitChosen = true;
    markTrait();
    paint();
    timeline.show(payload, trait);
    showCursor();
  }
  part("chips").addEventListener("click", chooseTrait);
  part("bars").addEventListener("click", chooseTrait);

  // ---- the cursor -----------------------------------------------------------------------------------------------

  function previewAt(index, scroll) {
    if (preview === index) return;
    preview = index;
    showCursor();
    if (scroll) reveal(cursor());
  }

  function pinAt(index, scroll = true) {
    position = Math.min(Math.max(index, 0), lastToken());
    pinned = true;
    preview = null;
    showCursor();
    if (scroll) reveal(position);
    options.onPin?.(position);
  }

  function follow() {
    pinned = false;
    preview = null;
    if (!payload.done) position = lastToken();
    showCursor();
    if (!payload.done) reveal(position);
  }

  part("pin").addEventListener("click", () => (pinned ? follow() : pinAt(cursor())));

  const STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
  function onKey(event) {
    if (!payload || event.ctrlKey || event.metaKey || event.altKey) return;
    const inText = event.currentTarget === text;
    if (inText && /^(ArrowUp|ArrowDown|PageUp|PageDown)$/.test(event.key)) return; // these scroll the text
    if (event.key in STEPS) pinAt(cursor() + STEPS[event.key]);
    else if (event.key === "Home") pinAt(0);
    else if (event.key === "End") pinAt(lastToken());
    else if (event.key === "Escape") follow();
    else return;
    event.preventDefault();
  }
  text.addEventListener("keydown", onKey);
  part("thumb").addEventListener("keydown", onKey);

  let shown = null; // the span that carries the cursor's outline
  let pinShown = null;
  function showCursor() {
    const index = cursor();
    if (shown !== spans[index]) {
      shown?.classList.remove("tv-at");
      shown = spans[index];
      shown?.classList.add("tv-at");
    }
    const pinSpan = pinned ? spans[position] : null;
    if (pinShown !== pinSpan) {
      pinShown?.classList.remove("tv-pinned");
      pinShown = pinSpan;
      pinShown?.classList.add("tv-pinned");
    }
    payload.traits.forEach((name, i) => {
      const score = payload.scores[name][index];
      const share = Math.min(Math.max((score ?? 0) / payload.scale, -1), 1);
      const { row, fill, value } = rows[i];
      fill.style.transform = "scaleX(" + share.toFixed(4) + ")"; // a negative scale grows to the left of zero
      fill.classList.toggle("tv-low", share < 0);
      row.classList.toggle("tv-over", Math.abs(score ?? 0) > payload.scale);
      value.textContent = scoreText(score);
    });
    timeline.moveTo(index);
    showReadout(index);
  }

  function showReadout(index) {
    const score = payload.scores[trait]?.[index];
    const token = visibleToken(payload.tokens[index]);
    const role = payload.roles[index];
    const inReply = index - payload.n_prompt + 1;
    const place =
      "Token " + (index + 1) + " of " + payload.tokens.length + (inReply > 0 ? " · " + inReply + " of the reply" : " · prompt");
    const chip = part("token");
    chip.textContent = token;
    chip.style.setProperty("--a", Math.min(Math.abs(score ?? 0) / payload.scale, 1).toFixed(3));
    chip.classList.toggle("tv-low", (score ?? 0) < 0);
    part("place").textContent = place + "\n" + role + (payload.special[index] ? " · special" : "") + " · id " + payload.ids[index];
    part("score").textContent = scoreText(score);
    part("score-name").textContent = trait ?? "";
    part("note").textContent =
      payload.unit + (payload.alignment === "before" ? ", in the state that chose this token" : ", after the model read this token");
    part("pin").textContent = pinned ? (payload.done ? "Unpin" : "Follow") : "Pin";
    part("pin").setAttribute("aria-pressed", String(pinned));
    const thumb = part("thumb");
    thumb.setAttribute("aria-valuemax", payload.tokens.length);
    thumb.setAttribute("aria-valuenow", index + 1);
    thumb.setAttribute("aria-valuetext", place + ", " + token + ", " + trait + " " + scoreText(score));
    if (pinned && preview === null) announce(place + ": " + token + ", " + trait + " " + scoreText(score));
  }

  // Screen readers hear where a step ended, not every token of a drag, and not the newest token of a stream.
  let speaking = null;
  function announce(words) {
    clearTimeout(speaking);
    speaking = setTimeout(() => (part("live").textContent = words), 300);
  }

  // ---- head, theme, chart ---------------------------------------------------------------------------------------

  function showHead() {
    const { title, meta, done, finish_reason: reason } = payload;
    part("title").textContent = title || "Conversation";
    part("meta").textContent = metaLine(meta);
    const warnings = payload.warnings ?? [];
    part("warnings").textContent = warnings.length ? "⚠ " + warnings.join(" ") : "";
    part("warnings").hidden = !warnings.length;
    part("key-low").textContent = "−" + payload.scale;
    part("key-high").textContent = "+" + payload.scale;
    part("key-unit").textContent = payload.unit;
    part("legend").hidden = payload.kind !== "z";
    part("status").textContent = done ? ENDS[reason] ?? "" : "writing";
  }

  const timeline = makeTimeline(part, {
    onPreview: (index) => previewAt(index, index !== null || pinned),
    onPick: (index) => pinAt(index),
  });

  const restyled = new MutationObserver(() => timeline.redraw());
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
  return { update };
}
