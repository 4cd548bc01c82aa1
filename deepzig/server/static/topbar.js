/** The line above a conversation: its title, the way of writing, the model. Made by app.js. */

import { asMarkdown, isEmpty } from "./conversations.js";
import { h, icon, iconButton, isComposing, setChildren } from "./dom.js";
import { download } from "./transfer.js";

export const CONDITIONS = {
  ready: "Ready",
  connecting: "Connecting to the server",
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
    const { isStatus, conversation } = this.#app;
    const isWritten = !isStatus && !isEmpty(conversation);
    if (!isStatus && document.activeElement === this.#input)
      return this.#element.querySelector(".model-chip").replaceWith(this.#model()); // the title is being written
    setChildren(
      this.#element,
      iconButton("menu", "Conversations", () => this.#app.toggleSidebar(true), ".only-narrow"),
      isStatus ? h("h1.topbar-title", "Status") : isWritten ? this.#title() : this.#modeSwitch(),
      h("span.spring"),
      this.#model(),
      isWritten && this.#save(),
    );
  }

  #title() {
    const { conversation } = this.#app;
    const input = h("input.topbar-title", {
      value: conversation.title,
      "aria-label": "Title",
      maxlength: 200,
      spellcheck: "false",
      onchange: () => this.#app.rename(input.value.trim() || conversation.title),
      onkeydown: (event) => event.key === "Enter" && !isComposing(event) && input.blur(),
    });
    return (this.#input = input);
  }

  /** Story or chat: the reader may choose until the first words are written. */
  #modeSwitch() {
    const { conversation, model } = this.#app;
    if (!model?.hasChatTemplate) return null;
    const button = (mode, name, label) => {
      const pressed = String(conversation.mode === mode);
      return h("button", { "aria-pressed": pressed, onclick: () => this.#app.setMode(mode) }, icon(name), label);
    };
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
    const words = conversation.title.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["conversation"];
    const save = () => download(`${words.join("-")}.md`, asMarkdown(conversation), "text/markdown");
    return iconButton("save", "Save as Markdown", save);
  }
}
