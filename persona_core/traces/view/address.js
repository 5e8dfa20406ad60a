// The view's state (trait, cursor, span and choices) in the query of an address, and back. The view checks every value.
// Cursor and span are tokens of the reply, from 0; those of the prompt are negative.

const viewAddress = (() => {
  const FIELDS = ["trait", "at", "span", "kind", "block", "alignment", "smooth", "scale", "lines", "special", "hidden"];
  const NUMBER = /^-?\d{1,7}$/;
  const SPAN = /^(-?\d{1,7})-(-?\d{1,7})$/;

  // The state that the fields of a query describe; malformed ones are left out.
  function read(query) {
    const state = {};
    for (const key of ["trait", "kind", "alignment", "scale", "lines", "block"]) if (query[key] !== undefined) state[key] = query[key];
    for (const key of ["at", "smooth"]) if (NUMBER.test(query[key] ?? "")) state[key] = Number(query[key]);
    const span = SPAN.exec(query.span ?? "");
    if (span) state.span = span.slice(1).map(Number);
    if (query.special === "0") state.special = false;
    try {
      if (query.hidden) state.hidden = query.hidden.split(",").map(decodeURIComponent);
    } catch {
      // not a list of names: nothing is hidden
    }
    return state;
  }

  // The fields of a query that describe the state; what is not set is left out.
  function write(state) {
    const query = {};
    for (const key of FIELDS) {
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

  return { read, write };
})();
