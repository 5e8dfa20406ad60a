// The choices of what is shown, in a menu. One object has them:
// {trait, kind, block, alignment, smooth, scale, lines, special, sentences, difference, hidden}. Every value is checked: it
// may come from a link.

const SMOOTHING = [1, 3, 5, 9, 17, 33];
const LONG = { reply: 300, window: 9 }; // tokens
const DEFAULTS = { trait: null, kind: null, block: "best", alignment: "at", smooth: null, scale: "fixed", lines: "some", special: true, sentences: true, difference: false, hidden: [] };

// The choices in effect for a trace: the user's if they are valid for it, else the payload's.
function choicesFor(model, userChoices) {
  const opens = { ...DEFAULTS, ...pick(model.view, ["kind", "alignment", "block", "trait", "special"]) };
  const chosen = { ...opens, ...userChoices };
  const blocks = blocksOf(model);
  if (!model.traits.includes(chosen.trait)) chosen.trait = opens.trait; // a trait of another reply
  if (!kindsOf(model).includes(chosen.kind)) chosen.kind = kindsOf(model)[0];
  if (chosen.block !== "best" && chosen.block !== "all") chosen.block = Number(chosen.block);
  if (typeof chosen.block === "number" && !blocks.includes(chosen.block)) chosen.block = "best";
  if (chosen.block === "all" && blocks.length < 2) chosen.block = "best";
  if (chosen.alignment !== "before") chosen.alignment = "at";
  chosen.smooth = SMOOTHING.includes(Number(chosen.smooth)) ? Number(chosen.smooth) : null;
  if (chosen.scale !== "range") chosen.scale = "fixed";
  chosen.difference = chosen.difference === true && model.sides.length === 2;
  if (chosen.lines !== "all") chosen.lines = "some";
  chosen.hidden = (chosen.hidden ?? []).filter((name) => model.traits.includes(name));
  if (chosen.hidden.length === model.traits.length) chosen.hidden = [];
  return chosen;
}

const pick = (from, keys) => Object.fromEntries(keys.filter((key) => from?.[key] !== undefined).map((key) => [key, from[key]]));

// Tokens in the trailing mean of the lines. Unless one is chosen, which is then that of every number shown, only the lines
// of long replies are smoothed.
const lineWindow = (model, choices) => choices.smooth ?? (model.length - model.start >= LONG.reply ? LONG.window : 1);

const blocksOf = (model) => model.sides[0].blocks.filter((block) => model.sides.every((side) => side.blocks.includes(block)));

// z needs a null, specific scores that of their log odds as well, cosines need norms. The first one is the default.
function kindsOf(model) {
  const every = (key) => model.sides.every((side) => side[key].every((value) => !Number.isNaN(value)));
  const z = every("null_std");
  const odds = model.sides.every(({ log_odds }) => log_odds?.subarray(-log_odds.length / 4).every((std) => std > 0));
  return [...(z && odds ? ["specific"] : []), ...(z ? ["z"] : []), ...(every("norms") ? ["cosine"] : []), "raw"];
}

function makeChoices(part, { onChange }) {
  const sheet = part("choices");

  function select(name, label, options, value, why) {
    const control = make("select");
    control.name = name;
    for (const [key, text] of options) control.append(new Option(text, key));
    control.value = String(value);
    control.addEventListener("change", () => onChange({ [name]: control.value }));
    const row = labelled(label, control);
    if (why) row.append(make("small", "", why));
    return row;
  }

  function tick(label, checked, onTick) {
    const control = make("input");
    control.type = "checkbox";
    control.checked = checked;
    control.addEventListener("change", () => onTick(control.checked));
    const row = make("label", "tv-tick");
    row.append(control, make("bdi", "", label));
    return row;
  }

  const KINDS = {
    specific: "specific to the trait",
    z: "z: not neutral, whatever the trait",
    cosine: "cosine of state and vector",
    raw: "raw: residual-stream units",
  };

  function build(model, choices) {
    const blocks = blocksOf(model);
    const fixed = inDeviations(choices.kind);
    const kinds = kindsOf(model).map((kind) => [kind, KINDS[kind]]);
    const blockOptions = [
      ["best", "each trait's best block"],
      ...blocks.map((block) => [block, "block " + block]),
      ...(blocks.length > 1 ? [["all", "all blocks, as a heat map"]] : []),
    ];
    const shown = make("fieldset", "tv-ticks");
    shown.append(make("legend", "", "Traits shown"));
    for (const name of model.traits)
      shown.append(
        tick(name, !choices.hidden.includes(name), (on) => {
          const hidden = on ? choices.hidden.filter((other) => other !== name) : [...choices.hidden, name];
          onChange({ hidden: hidden.length === model.traits.length ? choices.hidden : hidden });
        })
      );
    sheet.replaceChildren(
      select("kind", "Score", kinds, choices.kind),
      select("block", "Read at", blockOptions, choices.block),
      select(
        "alignment", "State",
        [["at", "after reading the token"], ["before", "that chose the token"]],
        choices.alignment
      ),
      select(
        "smooth", "Smoothing",
        [
          ["", "lines of " + LONG.reply + " tokens and more"],
          ...SMOOTHING.map((n) => [n, n === 1 ? "none" : "mean of the last " + n + " tokens"]),
        ],
        choices.smooth ?? ""
      ),
      select("lines", "Lines", [["some", "chosen trait, and those above the band"], ["all", "all traits"]], choices.lines),
      select(
        "scale", "Colour range",
        [...(fixed ? [["fixed", "±" + SD_SCALE + ", fixed"]] : []), ["range", "up to the largest score"]],
        fixed ? choices.scale : "range"
      ),
      ...(model.sides.length === 2
        ? [tick("Colour by the difference of the two sides", choices.difference, (on) => onChange({ difference: on }))]
        : []),
      tick("Name the highest trait of each sentence", choices.sentences, (on) => onChange({ sentences: on })),
      tick("Special tokens", choices.special, (on) => onChange({ special: on })),
      shown
    );
  }

  return { build };
}
