// Mounts the report on its own page: the system's theme, and the trait in the address. plotly.js lies there as text, and
// runs with the first figure.
(() => {
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => document.documentElement.classList.toggle("dark", prefers.matches);
  theme();
  prefers.addEventListener("change", theme);
  const content = JSON.parse(document.getElementById("data").textContent);
  let wanted = "";
  try { wanted = decodeURIComponent(location.hash.slice(1)); } catch { /* not decodable: the first trait */ }
  mountReport(document.getElementById("report"), content, {
    plotly() {
      const script = document.createElement("script");
      script.textContent = document.getElementById("plotly").textContent;
      document.head.append(script);
      return Promise.resolve(window.Plotly);
    },
    trait: wanted,
    onTrait: (trait) => history.replaceState(null, "", "#" + encodeURIComponent(trait)),
  });
})();
