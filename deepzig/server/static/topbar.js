/** The line above a conversation: its title, the way of writing, the model. Made by app.js. */

import { asMarkdown } from "./conversations.js";
import { h, icon, iconButton, isComposing } from "./dom.js";
import { download } from "./transfer.js";

export const CONDITIONS = {
  ready: "Ready",
  loading: "The model is being loaded",
  offline: "The server cannot be reached",
  locked: "Enter an API key",
};

export class Topbar {
  #app;
  #element;
  #input = null; // with the title

  constructor(app, element) {
    this.#app = app;
    this.#element = element;
  }

  show() {
    const { place, conversation } = this.#app;
    if (place !== "status" && document.activeElement === this.#input)
      return this.#element.querySelector(".model-chip").replaceWith(this.#model()); // the title is being written
    this.#element.replaceChildren(
      iconButton("menu", "Conversations", () => this.#app.toggleSidebar(true), ".only-narrow"),
      ...(place === "status" ? [h("h1.topbar-title", "Status")] : [this.#title(), this.#modeSwitch()].filter(Boolean)),
      h("span.spring"),
      this.#model(),
      ...(place !== "status" && Object.keys(conversation.nodes).length ? [this.#save()] : []),
    );
  }

  #title() {
    const { conversation } = this.#app;
    if (!Object.keys(conversation.nodes).length) return null;
    const input = h("input.topbar-title", {
      value: conversation.title,
      "aria-label": "Title",
      maxlength: 200,
      spellcheck: "false",
    });
    input.addEventListener("change", () => this.#app.rename(input.value.trim() || conversation.title));
    input.addEventListener("keydown", (event) => event.key === "Enter" && !isComposing(event) && input.blur());
    return (this.#input = input);
  }

  /** Story or chat: the reader may choose until the first words are written. */
  #modeSwitch() {
    const { conversation, model } = this.#app;
    if (Object.keys(conversation.nodes).length || !model?.hasChatTemplate) return null;
    const button = (mode, name, label) =>
      h(
        "button",
        { "aria-pressed": String(conversation.mode === mode), onclick: () => this.#app.setMode(mode) },
        icon(name),
        label,
      );
    return h(
      "div.mode-switch",
      { role: "group", "aria-label": "Way of writing" },
      button("story", "quill", "Write"),
      button("chat", "chat", "Chat"),
    );
  }

  #model() {
    const { model, condition } = this.#app;
    const label = condition === "ready" ? model.id : CONDITIONS[condition];
    const children = [h("span.dot", { "aria-hidden": "true" }), h("span.model-name", label)];
    if (condition === "locked") return h("button.model-chip.locked", { onclick: () => this.#app.connect() }, children);
    return h(`a.model-chip.${condition}`, { href: "#status", title: `${label}: status` }, children);
  }

  #save() {
    const { conversation } = this.#app;
    const name =
      conversation.title
        .replace(/[^\p{L}\p{N}]+/gu, "-")
        .replace(/^-|-$/g, "")
        .toLowerCase() || "conversation";
    return iconButton("save", "Save as Markdown", () =>
      download(`${name}.md`, asMarkdown(conversation), "text/markdown"),
    );
  }
}
