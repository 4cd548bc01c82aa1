/**
 * Where the reader writes: a field, the button that sends or stops, and how much of the context is used. Made by app.js;
 * knows nothing of conversations.
 */

import { fitHeight, h, icon, isComposing, setChildren } from "./dom.js";
import { formatNumber } from "./figures.js";

export class Composer {
  #input = h("textarea", {
    id: "composer-input",
    rows: 1,
    enterkeyhint: "send",
    spellcheck: "true",
    oninput: () => this.#changed(),
    onkeydown: (event) => this.#key(event),
  });
  #label = h("label.visually-hidden", { for: "composer-input" });
  #button = h("button.send-button", { type: "submit" });
  #meter = h("div.context-meter", { hidden: true, title: "How much of the model's context this conversation fills" });
  #hint = h("p.composer-hint");
  #isRunning = false;
  #mayBeEmpty = false;
  #app;

  constructor(app, dock) {
    this.#app = app;
    const onsubmit = (event) => (event.preventDefault(), this.#submit());
    const form = h("form.composer", { onsubmit }, this.#label, this.#input, this.#button);
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
    const isWide = mayBeEmpty && !isRunning;
    this.#button.setAttribute("aria-label", name);
    this.#button.title = isRunning ? "Stop (Esc)" : name;
    this.#button.classList.toggle("running", isRunning);
    this.#button.classList.toggle("wide", isWide);
    setChildren(this.#button, icon(isRunning ? "stop" : mayBeEmpty ? "quill" : "send"), isWide && name);
    this.#changed();
  }

  /** Tokens of the context that the conversation takes; none hides the meter. */
  showContext(used, total) {
    this.#meter.hidden = !used || !total;
    if (this.#meter.hidden) return;
    const share = Math.min(1, used / total);
    const fill = h(share > 0.85 ? "span.meter-fill.full" : "span.meter-fill");
    fill.style.setProperty("--share", share);
    const bar = h("span.meter-bar", { "aria-hidden": "true" }, fill);
    setChildren(this.#meter, bar, `${formatNumber(used)} of ${formatNumber(total)} tokens`);
  }

  focus() {
    this.#input.focus();
  }

  #submit() {
    if (this.#isRunning) return this.#app.stop();
    if (this.#button.disabled) return;
    const text = this.#input.value;
    this.#input.value = "";
    this.#changed();
    this.#app.submit(text);
  }

  #key(event) {
    if (isComposing(event)) return;
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      if (!this.#isRunning) this.#submit();
    } else if (event.key === "ArrowUp" && !this.#input.value) {
      event.preventDefault();
      this.#app.editLast();
    }
  }

  #changed() {
    const canSend = !this.#input.disabled && (this.#mayBeEmpty || this.#input.value.trim());
    this.#button.disabled = !this.#isRunning && !canSend;
    fitHeight(this.#input);
  }
}
