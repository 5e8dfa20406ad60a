// The menus of the view's head: one open at a time; a click elsewhere or Escape closes it.

function wireMenus(view) {
  const openMenus = () => view.querySelectorAll(".tv-menu[open]");
  for (const menu of view.querySelectorAll(".tv-menu"))
    menu.addEventListener("toggle", () => {
      for (const other of openMenus()) if (menu.open && other !== menu) other.open = false;
    });
  addEventListener("pointerdown", (event) => {
    for (const menu of openMenus()) if (!menu.contains(event.target)) menu.open = false;
  });
  view.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && event.target.closest?.(".tv-menu[open]");
    if (!menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
    event.stopPropagation();
  });
}

// formats: name -> [label, action]; a button each, which reports an error of its action in place.
function fillExportMenu(node, formats, { ready, doneLabels }) {
  node.append(
    ...Object.entries(formats).map(([name, [label, action]]) => {
      const button = make("button", "tv-item", label);
      button.type = "button";
      button.dataset.format = name;
      button.addEventListener("click", async () => {
        if (!ready()) return;
        try {
          await action();
          button.textContent = doneLabels[name] ?? label;
        } catch (error) {
          button.textContent = "Failed: " + error.message;
        }
        setTimeout(() => (button.textContent = label), 4000);
      });
      return button;
    })
  );
}
