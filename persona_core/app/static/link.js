// The page's address and what is shown, kept in step: a link restores the view.
//
// All of it is in the fragment, which browsers keep to themselves: what somebody typed is in no request's address and in
// no server's log. It reaches the server as what it is, the request to show that view.
//
// What a view shows carries its own address (payload.link, plain texts: which tab, which prompt, which run). The view
// adds what was chosen in it: trait, cursor, span and choices. Only the open tab's view is in the address.

window.personaLink = (() => {
  const VIEW = ["trait", "at", "span", "kind", "block", "alignment", "smooth", "scale", "special", "hidden"];
  const LONGEST = 6000; // characters of an address; servers and chats cut longer ones
  const parts = {}; // tab -> {link, state}
  const asked = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  let tab = asked.tab ?? "live";
  let settled = !asked.tab; // until a link's own tab is shown, nothing else may take its place in the address

  const NUMBER = /^\d{1,7}$/;

  // The view's choices that an address holds; each is checked again by the view itself.
  function viewState(query) {
    const state = {};
    for (const key of ["trait", "kind", "alignment", "scale", "block"]) if (query[key] !== undefined) state[key] = query[key];
    for (const key of ["at", "smooth"]) if (NUMBER.test(query[key] ?? "")) state[key] = Number(query[key]);
    const span = (query.span ?? "").split("-");
    if (span.length === 2 && span.every((place) => NUMBER.test(place))) state.span = span.map(Number);
    if (query.special === "0") state.special = false;
    try {
      if (query.hidden) state.hidden = query.hidden.split(",").map(decodeURIComponent);
    } catch {
      // no list of names: nothing is hidden
    }
    return state;
  }

  // Parts of the address that are JSON; what is none is left out.
  function json(query) {
    try {
      return { runs: JSON.parse(query.runs ?? "{}") };
    } catch {
      return {};
    }
  }

  function fromState(state) {
    const query = {};
    for (const key of VIEW) {
      const value = state?.[key];
      if (value === undefined || value === null || value === "") continue;
      if (key === "span") query.span = value.join("-");
      else if (key === "hidden") {
        if (value.length) query.hidden = value.map(encodeURIComponent).join(",");
      } else if (key === "special") {
        if (!value) query.special = "0";
      } else query[key] = String(value);
    }
    return query;
  }

  function whole() {
    const query = new URLSearchParams({ tab });
    const { link, state, more } = parts[tab] ?? {};
    for (const [key, value] of Object.entries({ ...link, ...more, ...fromState(state) })) query.set(key, value);
    return location.origin + location.pathname + location.search + "#" + query;
  }

  function address() {
    const full = whole();
    return full.length <= LONGEST ? full : full.slice(0, full.indexOf("#")) + "#tab=" + tab;
  }

  // To be handed on: one that would not bring the view back is an error that says so.
  function copied() {
    if (whole().length > LONGEST) throw new Error("the conversation is too long for a link.");
    return whole();
  }

  function show() {
    if (!settled) return;
    const full = address();
    history.replaceState(null, "", full);
    // On huggingface.co the page is in a frame; this puts the fragment into the address that the visitor sees.
    if (parent !== window) parent.postMessage({ hash: full.slice(full.indexOf("#") + 1) }, "https://huggingface.co");
  }

  // Whoever picks a tab by hand has left what the link asked for.
  addEventListener("click", (event) => (settled ||= event.isTrusted && Boolean(event.target.closest?.("[role=tab]"))), true);
  addEventListener("hashchange", () => location.reload()); // a link was pasted over the page's own address

  return {
    // A view of a tab: gets what the link asked of it, once.
    register(name, view) {
      if (asked.tab === name || (!asked.tab && name === "live")) view.restore(viewState(asked), json(asked));
    },
    // `link`: what brings the view back; null where nothing does any more, undefined where that has not changed.
    changed(name, state, link) {
      parts[name] = { ...parts[name], state, link: link === undefined ? parts[name]?.link : link };
      if (name === tab) show();
    },
    // Another part of a tab that has a state of its own, such as the filters of the runs.
    part(name, key, state) {
      const text = typeof state === "string" ? state : JSON.stringify(state);
      parts[name] = { ...parts[name], more: { ...parts[name]?.more, [key]: text } };
      if (name === tab) show();
    },
    opened(name) {
      if (!settled && name !== asked.tab) return; // the first tab announces itself before a link's tab is chosen
      settled = true;
      tab = name;
      show();
    },
    // What the server is asked for when the page opens.
    asked: () => asked,
    copied,
  };
})();
