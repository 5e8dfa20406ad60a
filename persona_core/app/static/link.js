// Keeps the page's address in step with what is shown, so that a link restores the view.
//
// Everything is in the fragment, which browsers do not send: what a visitor typed appears in no request's address and in
// no server's log. It reaches the server only as the request to show that view.
//
// A tab and a finding have an entry each in the browser's history: Back and Forward walk through them.
//
// A payload carries its own address (payload.link, plain texts: tab, prompt, run). The view adds its state: trait,
// cursor, span and choices. Only the open tab's view is in the address.

window.personaLink = (() => {
  const MAX_NOTE = 280;
  const MAX_LENGTH = 6000; // characters of an address; servers and chats cut longer ones
  const OURS = { persona: true }; // the state of our history entries; a link pasted over the address makes one without
  const parts = {}; // tab -> {link, state, more, back, branch, alternatives, saved, aim, opens, place}
  const fragment = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const linked = fragment();
  let tab = linked.tab ?? null; // null until the first tab reports itself
  let settled = !linked.tab; // until the link's tab is shown, no other tab may replace it in the address

  // The JSON part of the address; ignored if it is malformed.
  function json(query) {
    try {
      return { runs: JSON.parse(query.runs ?? "{}") };
    } catch {
      return {};
    }
  }

  // A saved reply needs only its id; what has it written again is left out where it is too long.
  function fullAddress(comment = "") {
    const { link, state, more } = parts[tab] ?? {};
    const withLink = (fields) => {
      const query = new URLSearchParams({ tab });
      for (const [key, value] of Object.entries({ ...fields, ...more, ...viewAddress.write(state) })) query.set(key, value);
      const note = comment ? "&note=" + encodeURIComponent(comment) : "";
      return location.origin + location.pathname + location.search + "#" + query + note;
    };
    const full = withLink(link);
    return link?.saved && full.length > MAX_LENGTH ? withLink({ saved: link.saved }) : full;
  }

  function address() {
    const full = fullAddress();
    return full.length <= MAX_LENGTH ? full : full.slice(0, full.indexOf("#")) + "#tab=" + tab;
  }

  // For copying; an address that cannot restore the view is an error.
  function copied(comment = "") {
    const full = fullAddress(comment);
    if (full.length > MAX_LENGTH) throw new Error("the conversation is too long for a link.");
    return full;
  }

  function show() {
    if (!settled || tab === null) return;
    const full = address();
    history.replaceState(OURS, "", full);
    // On huggingface.co the page is in a frame; this puts the fragment into the visitor's address bar.
    if (parent !== window) parent.postMessage({ hash: full.slice(full.indexOf("#") + 1) }, "https://huggingface.co");
  }

  // ?embed=1 shows the view alone, for other people's pages.
  document.documentElement.classList.toggle("embed", new URLSearchParams(location.search).get("embed") === "1");

  // A visitor who picks a tab has moved on from the link.
  addEventListener("click", (event) => (settled ||= event.isTrusted && Boolean(event.target.closest?.("[role=tab]"))), true);
  addEventListener("hashchange", () => history.state?.persona || location.reload()); // a link was pasted over the address
  addEventListener("popstate", (event) => {
    if (!event.state?.persona) return;
    const query = fragment();
    tab = query.tab; // so that the tab which is selected now makes no entry
    document.getElementById("tab-" + tab + "-button")?.click();
    parts[tab]?.back?.(query);
  });

  // What is shown next has an entry of its own; the current one stays behind it.
  const step = () => history.pushState(OURS, "", location.href);

  // The comment of whoever sent the link, over the view that it is about.
  function noteFor(view) {
    if (!view.element || document.querySelector(".link-note")) return;
    const note = document.createElement("p");
    note.className = "link-note";
    note.textContent = linked.note.slice(0, MAX_NOTE);
    view.element.prepend(note);
  }

  return {
    // A tab's view; gets its part of the link, once.
    register(name, view) {
      for (const key of ["back", "branch", "alternatives", "saved", "aim"]) if (view[key]) parts[name] = { ...parts[name], [key]: view[key] };
      if (view.open) {
        parts[name] = { ...parts[name], opens: [...(parts[name]?.opens ?? []), view.open] };
        if (parts[name].place) view.open(parts[name].place);
      }
      if (linked.tab === name && linked.note) noteFor(view);
      if (linked.tab === name) view.restore(viewAddress.read(linked), { ...linked, ...json(linked) });
    },
    // `link`: restores the view; null if nothing can, undefined if it has not changed.
    changed(name, state, link) {
      parts[name] = { ...parts[name], state, link: link === undefined ? parts[name]?.link : link };
      if (name === tab) show();
    },
    // Another part of a tab with its own state, such as the filters of the runs.
    part(name, key, state) {
      const text = typeof state === "string" ? state : JSON.stringify(state);
      parts[name] = { ...parts[name], more: { ...parts[name]?.more, [key]: text } };
      if (name === tab) show();
    },
    opened(name) {
      if (!settled && name !== linked.tab) return; // the first tab reports itself before the link's tab is selected
      settled = true;
      if (tab !== null && name !== tab) step();
      tab = name;
      show();
    },
    step,
    // A branch at the cursor of a tab's view, as its form says.
    branch: (name) => parts[name]?.branch?.(),
    // What else could stand at a token of it.
    alternatives: (name, found) => parts[name]?.alternatives?.(found),
    // Where a tab's view is to go in the reply that it shows next: {id, text, trait, at}.
    aim: (name, place) => parts[name]?.aim?.(place),
    // The server's answer to the request to save a reply.
    saved: (name, answer) => parts[name]?.saved?.(answer),
    // Another tab's reply {id, text, trait, at}: selects the tab, whose parts open it now or once they are there.
    open(name, place) {
      parts[name] = { ...parts[name], place };
      document.getElementById("tab-" + name + "-button")?.click();
      for (const view of parts[name].opens ?? []) view(place);
    },
    // The link's content, for the server.
    query: () => linked,
    copied,
    MAX_NOTE,
  };
})();
