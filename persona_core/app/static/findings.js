// The line over a published pair: what is seen there, and the way to the other findings. Each of them is a link.
//
// Texts come from the runs: they are only ever set as text.

window.mountFindings = (element, { findings, shown, tab, onPick, onAsk }) => {
  const part = (name) => element.querySelector("[data-part=" + name + "]");
  let current = shown;

  const links = findings.map(({ name, label }) => {
    const link = document.createElement("a");
    link.href = "#" + new URLSearchParams({ tab, finding: name });
    link.textContent = label;
    link.dataset.name = name;
    part("list").append(link);
    return link;
  });

  function show(name) {
    current = name;
    const found = findings.find((one) => one.name === name);
    part("says").textContent = found?.says ?? "";
    for (const link of links)
      if (link.dataset.name === name) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
  }

  function pick(name) {
    if (name === current || !findings.some((one) => one.name === name)) return;
    show(name);
    onPick(name);
  }

  part("list").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return; // these open another tab or window
    event.preventDefault();
    personaLink.step();
    pick(link.dataset.name);
  });
  part("next").addEventListener("click", () => {
    personaLink.step();
    const at = findings.findIndex((one) => one.name === current);
    pick(findings[(at + 1) % findings.length].name);
  });
  part("next").hidden = findings.length < 2;
  part("ask").addEventListener("click", () => onAsk(current));
  show(current);
  return { pick, show };
};
