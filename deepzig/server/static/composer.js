/**
 * Where the reader writes: a field that grows, the button that sends or stops, and how much of the context is used.
 * Called by app.js; knows nothing of conversations.
 */

import { h, icon, isComposing } from "./dom.js";
import { formatNumber } from "./figures.js";

const MOST_HEIGHT = 240; // px, then the field scrolls

export class Composer {
  #input = h("textarea", { id: "composer-input", rows: 1, enterkeyhint: "send", spellcheck: "true" });
  #label = h("label.visually-hidden", { for: "composer-input" });
  #button = h("button.send-button", { type: "submit" });
  #meter = h("div.context-meter", { hidden: true });
  #hint = h("p.composer-hint");
  #isRunning = false;
  #mayBeEmpty = false;

  onSubmit = () => {};
  onStop = () => {};
  onEditLast = () => {};

  constructor(dock) {
    const form = h("form.composer", this.#label, this.#input, this.#button);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    this.#input.addEventListener("input", () => this.#changed());
    dock.append(form, h("div.composer-foot", this.#hint, this.#meter));
  }

  /** What the field asks for. `mayBeEmpty`: sending nothing has a meaning, the story goes on. */
  set({ label, placeholder, hint, action, mayBeEmpty, isRunning, isDisabled }) {
    this.#label.textContent = label;
    this.#input.placeholder = placeholder;
    this.#hint.textContent = hint;
    this.#mayBeEmpty = mayBeEmpty;
    this.#isRunning = isRunning;
    this.#input.disabled = isDisabled;
    const name = isRunning ? "Stop" : action;
    this.#button.setAttribute("aria-label", name);
    this.#button.title = isRunning ? "Stop (Esc)" : name;
    this.#button.classList.toggle("running", isRunning);
    this.#button.classList.toggle("wide", mayBeEmpty && !isRunning);
    this.#button.replaceChildren(
      icon(isRunning ? "stop" : mayBeEmpty ? "quill" : "send"),
      ...(mayBeEmpty && !isRunning ? [name] : []),
    );
    this.#changed();
  }

  /** Tokens of the context that the conversation takes; null hides the meter. */
  showContext(used, total) {
    this.#meter.hidden = !used || !total;
    if (this.#meter.hidden) return;
    const share = Math.min(1, used / total);
    const bar = h(
      "span.meter-bar",
      { "aria-hidden": "true" },
      h(share > 0.85 ? "span.meter-fill.full" : "span.meter-fill"),
    );
    bar.firstChild.style.setProperty("--share", share);
    this.#meter.replaceChildren(bar, `${formatNumber(used)} of ${formatNumber(total)} tokens`);
    this.#meter.title = "How much of the model's context this conversation fills";
  }

  get text() {
    return this.#input.value;
  }

  set text(value) {
    this.#input.value = value;
    this.#changed();
  }

  focus() {
    this.#input.focus();
  }

  #submit() {
    if (this.#isRunning) return this.onStop();
    if (this.#input.disabled || (!this.#mayBeEmpty && !this.text.trim())) return;
    const { text } = this;
    this.text = "";
    this.onSubmit(text);
  }

  #key(event) {
    if (isComposing(event)) return;
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      if (!this.#isRunning) this.#submit();
    } else if (event.key === "ArrowUp" && !this.text) {
      event.preventDefault();
      this.onEditLast();
    }
  }

  #changed() {
    this.#button.disabled = !this.#isRunning && (this.#input.disabled || (!this.#mayBeEmpty && !this.text.trim()));
    this.#input.style.height = "auto";
    this.#input.style.height = `${Math.min(this.#input.scrollHeight, MOST_HEIGHT)}px`;
  }
}
