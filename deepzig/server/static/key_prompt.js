/** Asks for the API key after a 401. Called by api.js through app.js; the key goes back to it and is shown nowhere. */

import { button, field, h, openDialog } from "./dom.js";

const REFUSED = "The server refused this key.";
const ASKED = "This server asks for a key. Whoever started it gave it with --api-key.";

/** The key, or null if the user has none. `wasWrong`: a key was given before and refused. */
export function askForKey(wasWrong) {
  const input = h("input", {
    type: "password",
    autocomplete: "current-password",
    required: true,
    pattern: "[ -~]+", // nothing else fits into a header
    title: "A key has letters, digits and marks of ASCII only.",
  });
  const onsubmit = (event) => {
    event.preventDefault();
    dialog.close(input.value.trim());
  };
  const form = h(
    "form.dialog-body",
    { onsubmit },
    h("p", wasWrong ? REFUSED : ASKED),
    field("API key", "It is forgotten when this tab closes.", input),
    h(
      "div.button-row.end",
      button("Cancel", () => dialog.close()),
      h("button.button.primary", { type: "submit" }, "Use this key"),
    ),
  );
  const dialog = openDialog(".small", "API key", null, form);
  input.focus();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue || null)));
}
