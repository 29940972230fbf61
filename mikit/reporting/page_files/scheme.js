// Dark or light: the setting of the system, until the reader chooses.
function setUpScheme(restyle) {
  const root = document.documentElement, button = find("scheme"), system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.scheme ?? (system.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.scheme = dark() ? "light" : "dark"; name(); restyle(); });
  system.addEventListener("change", () => { name(); restyle(); });
  button.hidden = false;
  name();
}
