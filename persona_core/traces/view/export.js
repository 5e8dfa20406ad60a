// Exports: the displayed numbers, with the chosen unit, block, alignment and smoothing.

// One record per token of each side: its places in the conversation and in the reply, the displayed scores (null if there is none), the specific ones if the trace has
// them, and whether the token is a sink token at the block of one of these traits.
function exported(model, traits, choices) {
  const specific = kindsOf(model).includes("specific");
  const column = (values, i) => Object.fromEntries(traits.map((trait, t) => [trait, Number.isNaN(values[t][i]) ? null : values[t][i]]));
  return {
    title: model.title,
    kind: choices.kind,
    unit: UNITS[choices.kind],
    state: choices.alignment === "before" ? "the state that chose the token" : "after reading the token",
    smoothing: choices.smooth ?? 1,
    blocks: Object.fromEntries(traits.map((trait) => [trait, blockOf(model, trait, choices)])),
    sides: model.sides.map((side) => {
      const scores = traits.map((trait) => scoresOf(model, side, trait, choices));
      const ofTrait = specific && traits.map((trait) => scoresOf(model, side, trait, { ...choices, kind: "specific" }));
      const sinks = traits.map((trait) => sinksOf(side, blockOf(model, trait, choices), choices.alignment));
      return {
        name: side.name,
        facts: side.meta,
        finish: side.finish,
        n_prompt: side.n_prompt,
        onsets: side.onsets,
        tokens: side.tokens.map((text, i) => ({
          index: i,
          reply_token: i < side.n_prompt ? null : i - side.n_prompt, // what onsets count
          id: side.ids[i],
          role: side.roles[i],
          special: side.special[i],
          text,
          sink: sinks.some((of) => of[i] === 1),
          scores: column(scores, i),
          ...(ofTrait && { specific: column(ofTrait, i) }),
        })),
      };
    }),
  };
}

// A table with one row per token. The text is a JSON string: white space is visible, and a spreadsheet takes none of it
// for a formula.
function exportedTable(model, traits, choices) {
  const field = (value) => {
    const text = String(value ?? "");
    return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  // A name that looks like a formula is quoted for the same reason.
  const heading = (name) => field(/^[=+\-@\t\r]/.test(name) ? "'" + name : name);
  const data = exported(model, traits, choices);
  const specific = data.sides[0].tokens[0].specific ? traits : [];
  const names = [...traits, ...specific.map((trait) => "specific: " + trait)];
  const rows = [["side", "index", "reply_token", "id", "role", "special", "sink", "text", ...names].map(heading)];
  for (const side of data.sides)
    for (const token of side.tokens)
      rows.push([
        heading(side.name), token.index, token.reply_token, token.id, token.role, token.special, token.sink, field(JSON.stringify(token.text)),
        ...traits.map((trait) => field(token.scores[trait])),
        ...specific.map((trait) => field(token.specific[trait])),
      ]);
  return rows.map((row) => row.join(",")).join("\r\n") + "\r\n";
}

function download(name, content, type) {
  const link = make("a");
  link.href = content instanceof Blob ? URL.createObjectURL(content) : URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function fileName(model, ending) {
  const words = model.title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60);
  return (words || "trace") + "." + ending;
}

// In the shell page (standalone.py), to be replaced by the payload; joined here, because the shell holds this script too.
const PLACEHOLDER = JSON.stringify(["payload", "goes", "here"].join(" "));

// What the menu offers: name -> [label, action].
// scene() -> {model, payload, traits, trait, choices, scale, state}; picture() draws the chart; announce(sentence);
// shellUrl, shell, link, onSave: see mountTokenView
function exportFormats(view, { shellUrl, shell, link, onSave }, { scene, picture, announce }) {
  const save = (ending, content, type) => download(fileName(scene().model, ending), content, type);
  const formats = {
    json: ["JSON, the displayed scores", () => {
      const { model, traits, choices } = scene();
      save("json", JSON.stringify(exported(model, traits, choices), null, 1), "application/json");
    }],
    csv: ["CSV, one row per token", () => {
      const { model, traits, choices } = scene();
      save("csv", exportedTable(model, traits, choices), "text/csv;charset=utf-8");
    }],
    png: ["PNG, text and chart", async () => {
      const style = getComputedStyle(view);
      const colours = { of: (name) => style.getPropertyValue(name).trim() };
      save("png", await drawPicture(view, { ...scene(), colours, chartImage: picture() }));
    }],
  };
  const page = shell ?? (shellUrl && (async () => (await fetch(shellUrl)).text()));
  if (page)
    formats.html = ["HTML, a page that works offline", async () => {
      const empty = await page();
      const { payload, state, trait } = scene();
      const text = JSON.stringify({ ...payload, view: { ...payload.view, ...state, trait } });
      const safe = text.replace(/[<>&\u2028\u2029]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
      // A function as replacement: in a string, "$&" would be special.
      save("html", empty.replace(PLACEHOLDER, () => safe), "text/html;charset=utf-8");
    }];
  const copy = async (comment) => {
    await navigator.clipboard.writeText(link(comment));
    announce("Link copied.");
  };
  if (link) {
    formats.link = ["Copy a link to this view", () => copy()];
    formats.comment = ["Copy a link with a comment", async () => {
      const comment = prompt("A comment, shown over the view to whoever opens the link:");
      if (comment !== null) await copy(comment);
    }];
  }
  if (onSave)
    formats.save = ["Save this reply & copy its link", async () => {
      await navigator.clipboard.writeText(await onSave());
      announce("Reply saved, link copied.");
    }];
  return formats;
}
