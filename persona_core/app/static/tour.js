// A tour of the Live tab in three steps. It changes nothing but the selected tab.

window.startTour = (() => {
  const STEPS = [
    [".tv-panes", "The reply, token by token", "Orange: the selected trait explains the state better than neutral text or any other trait does. Blue: something else does. A line under or over the token shows the same without colour. ⚑ marks where the trait sets in, with its interval. Select another trait with the buttons above."],
    [".tv-time", "One cursor", "Strips, lines and text share one axis. Drag the slider, press Play or use the arrow keys; drag over the strips to see the mean of a span. The shaded band is the interval of the onset, if one was found."],
    ["#findings, #controls", "Your turn", "“Ask it yourself” opens the prompt, to be changed and sent; the reply appears token by token. With the cursor on a token, “Hold it here”, “Take it out” and “Push it” let the model go on from there with the trait changed."],
  ];
  const seen = (selector) => [...document.querySelectorAll(selector)].find((node) => node.offsetParent);
  let card = null;
  let close = null;

  return function startTour(from) {
    document.querySelector("#tabs [role=tab]")?.click();
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
      if (!card) return; // closed before the tab was drawn
      target = seen(STEPS[step][0]);
      target?.classList.add("tour-target");
      // The card lies over one end of the window, the target at the other.
      card.classList.toggle("tour-above", step === 1);
      target?.scrollIntoView({ block: step === 1 ? "end" : "start" });
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
