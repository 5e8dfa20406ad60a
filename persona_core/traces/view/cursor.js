// The cursor: where it is, what moves it, and the span that is selected. It draws nothing.
//
// makeCursor(model, hooks): model() is the newest one, or null.
//   moved()                   after each change
//   settled()                 after a change that an address keeps
//   reveal(position, except)  brings a position into sight in all texts but that of one side
//   halt()                    before a change that ends playing
//   zoom(factor)              as the keys ask for

const ZOOM = { "+": 0.5, "=": 0.5, "-": 2, 0: Infinity };
const STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: -10, PageUp: 10 };

function makeCursor(model, { moved, settled, reveal, halt, zoom }) {
  let committed = 0; // while the mouse previews nothing
  let pinned = false; // set by the user: a stream no longer moves it
  let side = 0; // whose text was clicked
  let preview = null; // position under the mouse
  let span = null; // [from, to], inclusive
  let wanted = null; // of a link whose trace has not arrived yet

  const last = () => model().length - 1;
  const current = () => preview ?? committed;

  // The newest token: of a branch, whose original is longer for a while, or of the longer of two replies.
  const newestAt = () => Math.max(...model().sides.filter((one) => !one.done).map((one) => one.shift + one.n - 1));

  // Another trace; the cursor opens at a position.
  function begin() {
    span = preview = null;
    pinned = false;
    side = 0;
  }

  function open(position) {
    committed = position;
    requestAnimationFrame(() => model() && reveal(position));
  }

  // `from`: the side under the mouse, whose text must not move.
  function previewAt(position, from = null) {
    if (preview === position) return;
    preview = position;
    moved();
    if (from === null && (position !== null || pinned)) reveal(current());
  }

  function pin(position, from = null) {
    committed = Math.min(Math.max(position, 0), last());
    pinned = true;
    preview = null;
    if (from !== null) side = from;
    if (span && (committed < span[0] || committed > span[1])) span = null;
    moved();
    reveal(committed, from);
    settled();
  }

  // A position that was chosen outside the texts; `of`: the side that it is about, if it is about one.
  function go(position, of = side) {
    halt();
    span = null;
    side = of;
    pin(position);
  }

  function release() {
    pinned = false;
    preview = span = null;
    if (!model().done) committed = newestAt();
    moved();
    if (!model().done) reveal(committed);
    settled();
  }

  function select(from, to) {
    halt();
    span = [Math.min(from, to), Math.max(from, to)];
    committed = Math.min(Math.max(committed, span[0]), span[1]);
    pinned = true;
    preview = null;
    moved();
    settled();
  }

  // With Shift the end of the span at the cursor moves.
  function extend(target) {
    const to = Math.min(Math.max(target, 0), last());
    const fixed = !span ? current() : current() === span[0] ? span[1] : span[0];
    committed = to;
    select(fixed, to);
    committed = to;
    moved();
    reveal(to);
  }

  function onKey(event) {
    if (!model() || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.key in STEPS ? current() + STEPS[event.key] : { Home: 0, End: last() }[event.key];
    if (event.key === "Escape") release();
    else if (event.key in ZOOM) zoom(ZOOM[event.key]);
    else if (target === undefined) return;
    else if (event.shiftKey) extend(target);
    else go(target);
    event.preventDefault();
  }

  // Applies what a link wants, once there is a trace that is complete.
  function settle() {
    if (!wanted || !model().done) return;
    const [at, ends] = [model().start + wanted.at, (Array.isArray(wanted.span) ? wanted.span : []).map((token) => model().start + token)];
    wanted = null;
    const inside = (position) => Number.isInteger(position) && position >= 0 && position <= last();
    if (ends.length === 2 && ends.every(inside)) {
      span = [Math.min(...ends), Math.max(...ends)];
      committed = span[0];
      pinned = true;
    }
    if (inside(at)) {
      committed = at;
      pinned = true;
    }
    open(committed);
  }

  return {
    begin, open, newest: newestAt, previewAt, pin, go, release, select, onKey, settle,
    where: () => ({ position: current(), committed, pinned, side, previewed: preview !== null, span }),
    toggle: () => (pinned ? release() : pin(current())),
    // A click in a text; one on the pinned token releases it.
    click: (position, of) => (pinned && position === committed && !span ? release() : pin(position, of)),
    // To the newest token of a reply that is being written.
    follow() {
      if (!pinned) committed = newestAt();
    },
    rewind() {
      if (committed >= last()) committed = 0;
      span = null;
    },
    // The next token; false at the end.
    forward() {
      if (!model() || committed >= last()) return false;
      pin(committed + 1);
      return true;
    },
    // In tokens of the reply, as plain values.
    state: () => ({
      ...(pinned && { at: replyToken(model(), committed) }),
      ...(span && { span: span.map((position) => replyToken(model(), position)) }),
    }),
    want({ at, span }) {
      wanted = Number.isInteger(at) || Array.isArray(span) ? { at, span } : null;
    },
  };
}
