// A tour of the Live tab in three steps. It changes nothing but the selected tab.

window.startTour = (() => {
  const STEPS = [
    ["#view .tv-panes", "The reply, token by token", "Orange: the selected trait explains the state better than neutral text or any other trait does. Blue: something else does. A line under or over the token shows the same without colour. Select another trait with the buttons above."],
    ["#view .tv-time", "One cursor", "Lines, heat strips and text share one axis. Drag the slider, press Play or use the arrow keys; drag over the chart to see the mean of a span. The shaded band marks the onset of the trait, if one was found."],
    ["#controls", "Your turn", "Send a message and watch the reply token by token. Then put the cursor on a token and press “Branch here”: the model continues from there with the trait capped. The other tabs compare two models and browse the published runs."],
  ];
  let card = null;
  let close = null;

  return function startTour(from) {
    document.querySelector("#tabs [role=tab]")?.click();
    const narrow = innerWidth < 700;
    close?.();
    let step = 0;
    let target = null;
    card = document.createElement("div");
    card.className = "tour-card";
    card.setAttribute("role", "dialog");
    card.setAttribute("aria-labelledby", "tour-title");
    const part = (tag, className, text = "") => {
      const node = document.createElement(tag);
      node.className = className;
      node.textContent = text;
      card.append(node);
      return node;
    };
    const count = part("p", "tour-count");
    const title = part("h2", "tour-title");
    title.id = "tour-title";
    const text = part("p", "tour-text");
    const skip = part("button", "tour-skip", "Close");
    const next = part("button", "tour-next");
    for (const button of [skip, next]) button.type = "button";
    document.body.append(card);

    function point() {
      target?.classList.remove("tour-target");
      target = card && document.querySelector(STEPS[step][0]);
      target?.classList.add("tour-target");
      target?.scrollIntoView({ block: narrow ? "start" : "center" }); // the card covers the lower half of a phone
    }
    function show() {
      const [, heading, description] = STEPS[step];
      point();
      count.textContent = "Step " + (step + 1) + " of " + STEPS.length;
      title.textContent = heading;
      text.textContent = description;
      next.textContent = step + 1 < STEPS.length ? "Next" : "Done";
      next.focus({ preventScroll: true });
    }
    const escape = (event) => event.key === "Escape" && end();
    function end() {
      removeEventListener("keydown", escape);
      target?.classList.remove("tour-target");
      card?.remove();
      card = close = null;
      from?.focus();
    }
    next.addEventListener("click", () => (++step < STEPS.length ? show() : end()));
    skip.addEventListener("click", end);
    addEventListener("keydown", escape); // whatever has the focus
    close = end;
    show();
    requestAnimationFrame(() => requestAnimationFrame(point)); // again once the tab has been drawn
  };
})();
