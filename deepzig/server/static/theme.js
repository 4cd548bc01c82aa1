// Sets the theme before the first paint, so that a dark page does not flash white. A classic script on purpose: modules
// run too late. The choice is made in settings.js and kept under the same name.
try {
  const { theme } = JSON.parse(localStorage.getItem("deepzig.settings") ?? "{}");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is forbidden or holds something else: the system's theme it is.
}
