// The token and score at the cursor of each side, and a bar for each trait and side.

function makeBars(part, { onTrait }) {
  let model = null;
  let rows = [];
  let readings = [];

  function colourDot(index) {
    const dot = make("span", "tv-dot");
    dot.style.setProperty("--dot", "var(--tv-c" + (index % N_COLOURS) + ")");
    return dot;
  }

  function build(next, traits, choices) {
    model = next;
    const two = model.sides.length === 2;
    part("bars").classList.toggle("tv-two", two);
    const head = make("div", "tv-row tv-row-head");
    head.setAttribute("role", "presentation");
    head.append(make("span"), make("span"), make("span"), ...model.sides.map((side) => make("span", "tv-value", side.name)));
    rows = traits.map((trait) => {
      const row = make("div", "tv-row");
      row.setAttribute("role", "listitem");
      row.dataset.trait = trait;
      const lanes = make("span", "tv-lanes-of-row");
      const fills = model.sides.map(() => {
        const bar = make("span", "tv-bar");
        bar.append(make("span", "tv-fill"));
        lanes.append(bar);
        return bar.lastElementChild;
      });
      const values = model.sides.map(() => make("span", "tv-value"));
      row.append(colourDot(model.traits.indexOf(trait)), make("bdi", "tv-name", trait), lanes, ...values);
      const block = blockOf(model, trait, choices);
      row.title = trait + (block < 0 ? ", block unknown" : ", read at block " + block) + "; " + UNITS[choices.kind];
      return { trait, row, fills, values, texts: [] };
    });
    part("bars").replaceChildren(...(two ? [head] : []), ...rows.map(({ row }) => row));
    readings = model.sides.map((side) => {
      const here = make("div", "tv-here");
      const who = make("span", "tv-side-name", two ? side.name : "");
      const token = make("bdi", "tv-token");
      const score = make("span", "tv-score");
      here.append(who, token, score);
      return { here, token, score };
    });
    part("here").replaceChildren(...readings.map(({ here }) => here));
  }

  function highlight(trait) {
    for (const { trait: name, row } of rows) row.classList.toggle("tv-chosen", name === trait);
  }

  // values: for each side a function trait -> score; tokens: the token text of each side.
  function show(values, scale, trait, tokens) {
    for (const { trait: name, row, fills, values: cells, texts } of rows) {
      let over = false;
      fills.forEach((fill, s) => {
        const score = values[s](name);
        const share = shareOf(score, scale);
        fill.style.transform = "scaleX(" + share.toFixed(4) + ")"; // a negative share grows to the left
        fill.classList.toggle("tv-low", share < 0);
        over ||= Math.abs(score) > scale;
        fill.parentElement.classList.toggle("tv-over", Math.abs(score) > scale);
        const text = scoreText(score);
        if (texts[s] !== text) cells[s].textContent = texts[s] = text;
      });
      row.classList.toggle("tv-beyond", over);
    }
    readings.forEach(({ token, score }, s) => {
      const value = values[s](trait);
      token.textContent = tokens[s];
      const share = shareOf(value, scale);
      token.style.setProperty("--a", Math.abs(share).toFixed(3));
      token.classList.toggle("tv-low", share < 0);
      score.textContent = scoreText(value);
    });
  }

  part("bars").addEventListener("click", (event) => {
    const row = event.target.closest("[data-trait]");
    if (row && model) onTrait(row.dataset.trait);
  });

  return { build, highlight, show, colourDot };
}
