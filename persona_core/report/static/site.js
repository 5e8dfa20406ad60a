// The static site: fetches what is opened, and keeps the page's address in step with it.
//
// Addresses: #id=…&text=…&trait=…&at=… is a run in the token view, #page=analysis and #page=vectors are the reports.
// Names, prompts and replies are untrusted: they are only ever set as text.

(() => {
  const PLOTLY = "assets/plotly.min.js";
  const part = (name) => document.querySelector('[data-part="' + name + '"]');

  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => document.documentElement.classList.toggle("dark", prefers.matches);
  theme();
  prefers.addEventListener("change", theme);

  // ---- files ----------------------------------------------------------------------------------------------------

  const fetched = new Map();
  function load(path) {
    if (!fetched.has(path)) {
      const answer = get(path).then((found) => found.json().catch(() => Promise.reject(new Error(path + " arrived incomplete. Reload the page."))));
      answer.catch(() => fetched.delete(path)); // the next attempt fetches it again
      fetched.set(path, answer);
    }
    return fetched.get(path);
  }

  async function get(path) {
    let answer;
    try {
      answer = await fetch(path, { cache: "no-cache" }); // a site may be replaced: ask whether the kept copy is still that of the host
    } catch {
      const how = location.protocol === "file:" ? "Serve this folder, for example with python -m http.server." : "Check the connection, and try again.";
      throw new Error(path + " could not be fetched. " + how);
    }
    if (!answer.ok) throw new Error(path + " could not be fetched: the server answered " + answer.status + ".");
    return answer;
  }

  function say(text) {
    part("notice").textContent = text;
    part("notice").hidden = !text;
  }

  // Never settles if the file does not arrive: the text is readable without its figures, and the line says why.
  const plotly = () =>
    personaPlotly(PLOTLY).catch(() => {
      say(PLOTLY + " could not be fetched: there are no figures.");
      return new Promise(() => {});
    });

  // The page that the HTML export fills in.
  const shell = async () => (await get("assets/standalone.txt")).text();

  // ---- the address ----------------------------------------------------------------------------------------------

  let site = null;
  let routed = null; // the fragment that is shown
  const shown = { page: "runs", id: null, text: null, state: {}, filters: null, trait: null };

  function fragment() {
    const query = new URLSearchParams();
    if (shown.page !== "runs") {
      query.set("page", shown.page);
      if (shown.trait) query.set("trait", shown.trait);
    } else {
      if (shown.id !== null) query.set("id", shown.id);
      if (shown.text !== null && shown.text !== run?.first) query.set("text", shown.text);
      for (const [key, value] of Object.entries(viewAddress.write(shown.state))) query.set(key, value);
      if (shown.filters) query.set("runs", JSON.stringify(shown.filters));
    }
    return "#" + query;
  }

  function remember() {
    const now = fragment();
    if (now === routed) return;
    routed = now;
    history.replaceState(null, "", now);
    // On huggingface.co the page is in a frame; this puts the fragment into the visitor's address bar.
    if (parent !== window) parent.postMessage({ hash: now.slice(1) }, "https://huggingface.co");
  }

  function open(query) {
    history.pushState(null, "", "#" + new URLSearchParams(query));
    return route();
  }

  async function route() {
    if (site === null || location.hash === routed) return;
    routed = location.hash;
    const query = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    const page = site.pages.includes(query.page) ? query.page : "runs";
    if (page !== shown.page) scrollTo({ top: 0, behavior: "instant" });
    shown.page = page;
    for (const section of document.querySelectorAll("[data-page]")) section.hidden = section.dataset.page !== page;
    for (const link of document.querySelectorAll("[data-to]"))
      if (link.dataset.to === page) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    say("");
    await (page === "runs" ? openRun(query) : openReport(page, query));
  }

  // ---- a run ----------------------------------------------------------------------------------------------------

  let run = null;
  let newest = 0; // only the run that was opened last is shown
  let opened; // the trait that nobody has chosen

  const view = mountTokenView(part("run"), {
    emptyText: "The replies appear here.",
    shell,
    onState(state) {
      shown.state = state;
      if (shown.page === "runs") remember();
    },
    link: () => new URL(fragment(), location.href).href,
  });

  async function openRun(query) {
    const known = site.ids.indexOf(query.id);
    const wanted = query.id === undefined && run ? site.ids.indexOf(run.id) : known < 0 ? site.ids.indexOf(site.opening.id) : known;
    const mine = ++newest;
    if (query.runs !== undefined) shown.filters = filtersOf(query.runs);
    try {
      const next = await load(site.files[wanted]);
      if (mine !== newest) return;
      const same = run === next;
      run = next;
      if (query.id !== undefined && known < 0) say("There is no run “" + query.id.slice(0, 80) + "”. Shown instead: " + run.id + ".");
      shown.id = run.id;
      if (same && query.id === undefined) return remember(); // back from another page
      const { at, span, ...state } = viewAddress.read(query);
      opened = state.trait === undefined && run.id === site.opening.id ? site.opening.trait ?? undefined : undefined;
      if (opened) state.trait = opened;
      view.restore({ trait: undefined, ...state });
      showRun(query.text);
      if (at !== undefined || span) view.restore({ at, span }); // of this run, not of the one that was shown
    } catch (error) {
      if (mine === newest) say(error.message);
    }
    showAll();
  }

  function showRun(text) {
    const named = Object.keys(run.texts);
    run.first = named[0];
    shown.text = named.includes(text) ? text : named[0];
    const { payload, sides, notice } = run.texts[shown.text];
    const finding = site.findings.find((one) => one.id === run.id && one.text === shown.text);
    part("finding-head").textContent = finding ? finding.label : run.id === site.opening.id ? site.opening.why : run.id;
    part("finding-text").textContent = [finding ? finding.says : run.says, notice].filter(Boolean).join(" ");
    part("finding").hidden = !part("finding-head").textContent && !part("finding-text").textContent;
    const choices = named.map((key) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "text", value: key, checked: key === shown.text });
      label.append(input, run.texts[key].label ?? site.texts[key]);
      return label;
    });
    for (const link of part("findings").children)
      if (link.dataset.name === finding?.name) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    const focused = part("texts").contains(document.activeElement);
    part("texts").replaceChildren(part("texts").querySelector("legend"), ...choices);
    part("texts").hidden = named.length < 2;
    if (focused) part("texts").querySelector("input:checked").focus();
    view.update({ ...payload, ...(Number.isInteger(finding?.at) ? { focus: finding.at } : {}), sides: sides.map((index) => run.sides[index]) });
    remember();
  }

  part("texts").addEventListener("change", (event) => showRun(event.target.value));

  // ---- all runs -------------------------------------------------------------------------------------------------

  const explorer = mountExplorer(part("runs"), {
    emptyText: "Loading the runs …",
    onPick({ id, trait, picked, at }) {
      if (id === shown.id && !picking) return; // the explorer restores a link that is shown already
      const kept = shown.state.trait === opened ? undefined : shown.state.trait; // chosen in the view, or by a link
      open({ id, trait: (picked ? undefined : kept) ?? trait, ...viewAddress.write({ at }) }).then(() => {
        part("finding").focus({ preventScroll: true });
        part("finding").scrollIntoView({ block: "start" });
      });
    },
    onState({ id, ...filters }) {
      const now = JSON.stringify(filters);
      if (!picking) return void (unfiltered = shown.filters ? null : now);
      shown.filters = now === unfiltered ? null : filters;
      remember();
    },
  });
  let picking = false; // until then, what the explorer chooses is no visitor's choice
  let unfiltered = null; // its own choices

  // The list of all runs is larger than the rest of the page: it is fetched after the run itself, when it comes near.
  let all = null;
  function showAll() {
    all ??= near(part("runs")).then(() => load("data/runs.json")).then(
      (table) => {
        explorer.restore({ ...shown.filters, id: shown.id });
        explorer.update(table);
        picking = true;
      },
      (error) => {
        all = null;
        explorer.update({ error: error.message });
      }
    );
    all.then(() => picking && explorer.restore({ ...shown.filters, id: shown.id }));
  }

  const near = (node) =>
    new Promise((resolve) => {
      const watcher = new IntersectionObserver(
        (entries) => {
          if (!entries.some(({ isIntersecting }) => isIntersecting)) return;
          watcher.disconnect();
          resolve();
        },
        { rootMargin: "200px" }
      );
      watcher.observe(node);
    });

  function filtersOf(text) {
    try {
      const found = JSON.parse(text);
      return typeof found === "object" ? found : null;
    } catch {
      return null; // malformed: all of them
    }
  }

  part("to-all").addEventListener("click", () => {
    part("all").focus({ preventScroll: true });
    part("all").scrollIntoView({ block: "start" });
  });

  // ---- the reports ----------------------------------------------------------------------------------------------

  const reports = {};
  async function openReport(page, query) {
    const root = part(page);
    try {
      if (!reports[page]) {
        if (!root.firstChild) root.textContent = "Loading …";
        const content = await load("data/" + page + ".json");
        shown.trait = query.trait ?? null;
        reports[page] ??= mountReport(root, content, {
          plotly,
          address: (place) => "#" + new URLSearchParams(Object.entries(place).filter(([, value]) => value !== undefined)),
          trait: query.trait,
          onTrait(trait) {
            shown.trait = trait;
            remember();
          },
        });
      } else if (query.trait) reports[page].pick(query.trait);
    } catch (error) {
      root.replaceChildren();
      say(error.message);
    }
    shown.trait = query.trait ?? null;
  }

  // ---- start ----------------------------------------------------------------------------------------------------

  addEventListener("hashchange", route);
  addEventListener("popstate", route);
  load("site.json").then(
    (found) => {
      site = found;
      for (const { name, label, id, text, trait } of site.findings) {
        const link = document.createElement("a");
        link.href = "#" + new URLSearchParams({ id, text, trait });
        link.dataset.name = name;
        link.textContent = label;
        part("findings").append(link);
      }
      for (const link of document.querySelectorAll("[data-to]")) link.hidden = !site.pages.includes(link.dataset.to);
      route();
    },
    (error) => say(error.message)
  );
})();
