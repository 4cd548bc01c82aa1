/**
 * A conversation as a chat: questions, and answers with their thinking. Made by app.js, which does what the buttons ask
 * for; calls prose.js for the text of answers.
 */

import { allVersions, shownPath } from "./conversations.js";
import { copyButton, h, iconButton, setChildren } from "./dom.js";
import { formatSeconds } from "./figures.js";
import { editInPlace, problemLine, progressLine, statisticsText, versionSwitch } from "./message_parts.js";
import { showMarkdown } from "./prose.js";

export class ChatView {
  #app;
  #parts = new Map(); // id of a message -> its elements

  constructor(app) {
    this.#app = app;
    this.element = h("div.thread", { role: "log", "aria-label": "Conversation", "aria-live": "off" });
  }

  /** Shows the path; messages that stay keep their nodes, and a path that stays keeps the focus. */
  show() {
    const path = shownPath(this.#app.conversation);
    const make = (node) => (node.role === "user" ? this.#makeQuestion(node) : this.#makeAnswer(node));
    const kept = new Map();
    for (const node of path) kept.set(node.id, this.#parts.get(node.id) ?? make(node));
    this.#parts = kept;
    const shown = path.length ? [...kept.values()].map((parts) => parts.article) : [emptyChat(this.#app)];
    const { children } = this.element;
    if (shown.length !== children.length || shown.some((element, index) => element !== children[index]))
      this.element.replaceChildren(...shown);
    const versions = allVersions(this.#app.conversation);
    for (const node of path) {
      this.update(node);
      setChildren(kept.get(node.id).versions, versionSwitch(this.#app, node, versions.get(node.parent)));
    }
  }

  /** Shows what has changed in one message. */
  update(node) {
    const parts = this.#parts.get(node.id);
    if (parts && node.role === "assistant") this.#updateAnswer(node, parts);
  }

  /** Opens the last thing that the reader said for editing. */
  editLast() {
    const node = shownPath(this.#app.conversation).findLast(({ role }) => role === "user");
    this.#parts.get(node?.id)?.edit();
  }

  #makeQuestion(node) {
    const bubble = h("div.bubble", node.content);
    const versions = h("span");
    const edit = () => editInPlace(bubble, node.content, "Edit your message", (text) => this.#app.edit(node, text));
    const copy = copyButton(() => node.content);
    const foot = h("div.message-foot", versions, h("span.actions", iconButton("edit", "Edit", edit), copy));
    return { article: h("article.message.question", { "aria-label": "You" }, bubble, foot), versions, edit };
  }

  #makeAnswer(node) {
    const summary = h("summary", { onclick: () => (parts.isToggled = true) });
    const thinkingText = h("div.prose.thinking-text");
    const thinking = h("details.thinking", summary, thinkingText);
    const [progress, prose, problem, versions] = [h("div"), h("div.prose"), h("div"), h("span")];
    const statistics = h("span.statistics");
    const again = iconButton("again", "Answer again", () => this.#app.regenerate(node));
    const copy = copyButton(() => node.content);
    const foot = h("div.message-foot", versions, h("span.actions", copy, again), statistics);
    const article = h("article.message.answer", { "aria-label": "Answer" }, thinking, progress, prose, problem, foot);
    const parts = { article, thinking, summary, thinkingText, progress, prose, problem, copy, versions, statistics };
    return parts;
  }

  #updateAnswer(node, parts) {
    const run = this.#app.runOf(node);
    parts.article.setAttribute("aria-busy", Boolean(run));
    this.#updateThinking(node, run, parts);
    setChildren(parts.progress, run?.firstToken === null && !node.content && progressLine(run));
    showMarkdown(parts.prose, node.content);
    setChildren(parts.problem, !run && problemLine(this.#app, node));
    parts.copy.hidden = !node.content;
    parts.statistics.textContent = statisticsText(node, run);
  }

  #updateThinking(node, run, parts) {
    parts.thinking.hidden = !node.reasoning;
    if (!node.reasoning) return;
    const isThinking = run?.isThinking ?? false;
    const seconds = isThinking ? (performance.now() - run.firstToken) / 1000 : node.stats?.thoughtS;
    const [name, plainName] = isThinking ? ["Thinking", "Thinking"] : ["Thought", "Thoughts"];
    parts.summary.textContent = seconds ? `${name} for ${formatSeconds(seconds)}` : plainName;
    parts.summary.classList.toggle("active", isThinking);
    if (!parts.isToggled) parts.thinking.open = isThinking; // open while it lasts, unless the reader chose
    showMarkdown(parts.thinkingText, node.reasoning);
  }
}

function emptyChat({ model }) {
  const note = "This model has not been taught to chat: it goes on with whatever you write.";
  return h(
    "div.empty",
    h("h1", model?.id ?? "deepzig"),
    h("p.facts", model?.facts),
    model && !model.tellsRoles && h("p.note-line", note),
  );
}
