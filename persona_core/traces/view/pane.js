// One side's conversation as text, token by token.

const WHO = { system: "System", user: "User", thinking: "Thinking", assistant: "Assistant", template: "" };

// hooks: onPreview(index | null), onPick(index), onSpan(from, to), onKey(event), onScroll(pane)
function makePane(hooks) {
  const element = make("section", "tv-pane");
  const name = make("h3", "tv-name-line");
  const status = make("span", "tv-status");
  const meta = make("p", "tv-meta");
  const warnings = make("p", "tv-warnings");
  const onsetLine = make("p", "tv-says");
  const caveats = make("details", "tv-caveats");
  caveats.append(make("summary", "", "Why is this less certain here?"), make("p"));
  const text = make("div", "tv-text");
  warnings.setAttribute("role", "note");
  text.tabIndex = 0;
  text.setAttribute("role", "group");
  const top = make("div", "tv-pane-head");
  const facts = make("div", "tv-facts");
  facts.append(meta, status);
  top.append(name, facts, warnings, onsetLine, caveats);
  element.append(top, text);

  let side = null;
  let spans = []; // one element per token
  let painted = []; // the last colour of each

  function fill(from) {
    for (let i = from; i < side.n; i++) {
      const role = side.roles[i];
      let section = text.lastElementChild;
      if (!section || section.dataset.role !== role) {
        section = make("div", "tv-section");
        section.dataset.role = role;
        section.append(make("div", "tv-who", WHO[role] ?? role), role === "thinking" ? makeFold() : make("div", "tv-what"));
        section.lastElementChild.dir = "auto"; // right-to-left replies read from the right
        text.append(section);
      }
      const span = make("span", side.special[i] ? "tv-tok tv-special" : "tv-tok");
      span.dataset.i = i;
      fillToken(span, side.tokens[i]);
      spans.push(span);
      (section.querySelector(".tv-fold") ?? section.lastElementChild).append(span);
    }
  }

  // A thought is folded away, except while it is written.
  function makeFold() {
    const fold = make("details", "tv-what");
    fold.open = !side.done;
    fold.append(make("summary", "", "Thought before the answer"), make("div", "tv-fold"));
    fold.addEventListener("toggle", showMore);
    return fold;
  }

  function show(next, grown, alone) {
    const before = side;
    side = next;
    if (grown) {
      // The text of the last tokens may still change: a character can span several of them.
      for (let i = 0; i < before.n; i++) if (before.tokens[i] !== side.tokens[i]) fillToken(spans[i], side.tokens[i]);
      const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
      fill(before.n);
      if (atEnd && before.n < side.n) text.scrollTop = text.scrollHeight;
    } else {
      text.replaceChildren();
      spans = [];
      painted = [];
      marked = new Map();
      at = pinned = null;
      inSpan = [];
      fill(0);
      text.scrollTop = 0;
    }
    name.textContent = side.name;
    name.hidden = alone;
    meta.textContent = meta.title = metaLine(side.meta);
    status.textContent = side.done ? ENDS[side.finish] ?? "" : "writing";
    status.dataset.state = side.done ? "done" : "live";
    element.dataset.state = status.dataset.state;
    const found = side.warnings ?? [];
    warnings.textContent = found.length ? "⚠ " + found.join(" ") : "";
    warnings.hidden = !found.length;
    text.setAttribute(
      "aria-label",
      (alone ? "The conversation" : side.name) + ", token by token. Left and right arrow keys move the cursor."
    );
    showMore();
  }

  // The onset of a trait, as text; `moved`: by how many tokens scores, and with them its mark, are shown later.
  function showOnset(trait, moved) {
    const onset = side.onsets?.[trait];
    // While the reply is written the line is reserved, so that nothing below jumps at the end.
    const sentence = onset ? onset.says : side.done ? "" : "timed once the reply has ended";
    // What was found on plain z, or says "no trait in particular", is not about the trait.
    const onZ = onset?.kind === "z" && onset.answer !== "none";
    const about = onset?.named === false ? "" : trait + (onZ ? ", plain z: " : ": ");
    const marked = moved && Number.isInteger(onset?.onset ?? onset?.doubles) ? " (the state after that token, which chose the marked one)" : "";
    onsetLine.textContent = sentence && (about ? about + sentence : capitalized(sentence)) + marked;
    onsetLine.hidden = !sentence;
    const known = onset ? side.caveats ?? [] : [];
    caveats.lastElementChild.textContent = known.join("; ");
    caveats.hidden = !known.length;
  }

  // Hue and strength show the score; a line under (positive) or over (negative) the token shows it without colour. Sink
  // tokens have neither: they are hatched.
  function paint(scores, scale, sinks) {
    for (let i = 0; i < side.n; i++) {
      const share = shareOf(scores[i], scale);
      const sink = sinks[i] === 1;
      const key = sink ? "sink" : share.toFixed(3);
      if (painted[i] === key) continue;
      if (sink) spans[i].title = SINK;
      else if (painted[i] === "sink") spans[i].removeAttribute("title");
      painted[i] = key;
      spans[i].style.setProperty("--a", Math.abs(share).toFixed(3));
      spans[i].classList.toggle("tv-low", share < 0);
      spans[i].classList.toggle("tv-sink", sink);
    }
  }

  // What marksOf returns. Only what has changed is touched: a reply that grows is marked anew with each token.
  let marked = new Map(); // token -> {className -> true, "onset" and "top" -> text}, as JSON
  function mark({ shared, parts, onset, tops }) {
    const wanted = new Map();
    const add = (index, more) => index < spans.length && wanted.set(index, { ...wanted.get(index), ...more });
    if (shared) for (let i = shared[0]; i < shared[1]; i++) add(i, { "tv-shared": true });
    if (parts !== null) add(parts, { "tv-parts": true });
    if (onset) add(onset.index, { "tv-onset": true, onset: onset.text });
    for (const [index, top] of tops) add(index, { top });
    for (const index of marked.keys()) if (!wanted.has(index)) wanted.set(index, {});
    for (const [index, now] of wanted) {
      const key = JSON.stringify(now);
      if (marked.get(index) === key) continue;
      const span = spans[index];
      for (const name of ["tv-shared", "tv-parts", "tv-onset"]) span.classList.toggle(name, Boolean(now[name]));
      for (const name of ["onset", "top"])
        if (now[name] === undefined) delete span.dataset[name];
        else span.dataset[name] = now[name];
      marked.set(index, key);
    }
  }

  let at = null;
  let pinned = null;
  function moveTo(index, pinnedIndex) {
    if (at !== spans[index]) {
      at?.classList.remove("tv-at");
      at = spans[index] ?? null;
      at?.classList.add("tv-at");
    }
    const next = spans[pinnedIndex] ?? null;
    if (pinned !== next) {
      pinned?.classList.remove("tv-pinned");
      pinned = next;
      pinned?.classList.add("tv-pinned");
    }
  }

  let inSpan = [];
  function showSpan(from, to) {
    for (const span of inSpan) span.classList.remove("tv-in");
    inSpan = from === null ? [] : spans.slice(Math.max(from, 0), Math.max(to + 1, 0));
    for (const span of inSpan) span.classList.add("tv-in");
  }

  function reveal(index) {
    const span = spans[index];
    if (!span) return;
    const fold = span.closest("details");
    if (fold) fold.open = true;
    const box = text.getBoundingClientRect();
    const token = span.getBoundingClientRect();
    if (token.top < box.top + 8) text.scrollTop -= box.top + 24 - token.top;
    else if (token.bottom > box.bottom - 48) text.scrollTop += token.bottom + 48 - box.bottom; // clear of the fade
  }

  // ---- pointer, keys, selection ----

  const indexAt = (node) => {
    const element = node?.nodeType === Node.TEXT_NODE ? node.parentElement : node;
    const span = element?.closest?.(".tv-tok");
    return span && text.contains(span) ? Number(span.dataset.i) : null;
  };
  text.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse" && side) hooks.onPreview(indexAt(event.target));
  });
  text.addEventListener("pointerleave", () => side && hooks.onPreview(null));
  text.addEventListener("click", (event) => {
    const index = side ? indexAt(event.target) : null;
    if (index !== null && getSelection().isCollapsed) hooks.onPick(index);
  });
  text.addEventListener("keydown", (event) => {
    if (!/^(ArrowUp|ArrowDown|PageUp|PageDown)$/.test(event.key)) hooks.onKey(event); // these scroll the text
  });
  // Selected text, perhaps to be copied, is a span as well.
  text.addEventListener("pointerup", () => {
    const selection = getSelection();
    if (!side || selection.isCollapsed) return;
    const ends = [indexAt(selection.anchorNode), indexAt(selection.focusNode)];
    if (ends.includes(null)) return;
    hooks.onSpan(Math.min(...ends), Math.max(...ends));
  });

  // ---- scrolling ----

  // The text fades out at an edge beyond which there is more.
  function showMore() {
    text.classList.toggle("tv-less", text.scrollTop > 4);
    text.classList.toggle("tv-more", text.scrollHeight - text.scrollTop - text.clientHeight > 4);
  }
  new ResizeObserver(showMore).observe(text);

  // The token at the top of the visible text, by bisection.
  function topIndex() {
    const line = text.getBoundingClientRect().top + 12;
    let [low, high] = [0, spans.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (spans[middle].getBoundingClientRect().bottom < line) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  let led = false; // scrolled by the other side, not by the user
  function scrollTopTo(index) {
    const span = spans[Math.min(Math.max(index, 0), spans.length - 1)];
    if (!span) return;
    const target = text.scrollTop + span.getBoundingClientRect().top - text.getBoundingClientRect().top - 12;
    if (Math.abs(target - text.scrollTop) < 2) return;
    led = true;
    text.scrollTop = target;
  }
  text.addEventListener(
    "scroll",
    () => {
      showMore();
      if (led) led = false;
      else hooks.onScroll();
    },
    { passive: true }
  );

  return { element, text, show, showOnset, paint, mark, moveTo, showSpan, reveal, topIndex, scrollTopTo };
}
