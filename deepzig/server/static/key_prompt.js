/** Asks for the API key after a 401. Called by api.js through app.js; the key goes back to it and is shown nowhere. */

import { button, h } from "./dom.js";

/** The key, or null if the user has none. `wasWrong`: a key was given before and refused. */
export function askForKey(wasWrong) {
  return new Promise((resolve) => {
    const input = h("input", {
      id: "key-input",
      type: "password",
      autocomplete: "current-password",
      required: true,
      pattern: "[ -~]+", // nothing else fits into a header
      title: "A key has letters, digits and marks of ASCII only.",
      "aria-describedby": "key-hint",
    });
    const form = h(
      "form.dialog-body",
      h(
        "p",
        wasWrong
          ? "The server refused this key."
          : "This server asks for a key. Whoever started it gave it with --api-key.",
      ),
      h(
        "div.field",
        h("label", { for: "key-input" }, "API key"),
        input,
        h("p.hint", { id: "key-hint" }, "It is forgotten when this tab closes."),
      ),
      h(
        "div.button-row.end",
        button("Cancel", () => dialog.close()),
        h("button.button.primary", { type: "submit" }, "Use this key"),
      ),
    );
    const dialog = h(
      "dialog.dialog.small",
      { "aria-labelledby": "key-title" },
      h("header.dialog-head", h("h2", { id: "key-title" }, "API key")),
      form,
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close(input.value.trim());
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue || null);
    });
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  });
}
