/**
 * A conversation as a story: one text, written in turns by the reader and by the model. Made by app.js, which does what
 * the buttons ask for.
 */

import { allVersions, asText, shownPath } from "./conversations.js";
import { copyButton, h, iconButton, setChildren } from "./dom.js";
import { fitting } from "./generation.js";
import { editInPlace, problemLine, progressLine, statisticsText, versionSwitch } from "./message_parts.js";

const ABOUT_STORIES =
  "Write a sentence or two, and the small model that comes with deepzig goes on. It knows only children's stories.";
const OPENINGS = [
  "Once upon a time, there was a little dragon who was afraid of fire.",
  "Lily found a tiny door behind the old oak tree.",
  "Tom and his dog Max went to the beach to look for treasure.",
  "One rainy day, a small robot knocked on the window.",
];

export class StoryView {
  #app;
  #spans = new Map(); // id of a passage -> its span
  #text = h("div.story-text", { role: "log", "aria-label": "Story", "aria-live": "off" });
  #progress = h("div");
  #problem = h("div");
  #foot = h("div.story-foot");

  constructor(app) {
    this.#app = app;
    this.element = h("div.thread.story");
  }

  /** Shows the passages on the path; those that stay keep their nodes. */
  show() {
    const path = shownPath(this.#app.conversation);
    if (!path.length) return setChildren(this.element, emptyStory(this.#app));
    if (!this.element.querySelector(".edit-box"))
      setChildren(this.element, this.#text, this.#progress, this.#problem, this.#foot);
    const kept = new Map();
    for (const node of path) kept.set(node.id, this.#spans.get(node.id) ?? h(`span.passage.${node.role}`));
    this.#spans = kept;
    setChildren(this.#text, ...kept.values());
    path.forEach((node) => this.update(node));
  }

  /** Shows what has changed in one passage. */
  update(node) {
    const span = this.#spans.get(node.id);
    if (!span) return;
    showText(span, node.content);
    const path = shownPath(this.#app.conversation);
    if (node !== path.at(-1)) return;
    const run = this.#app.runOf(node);
    this.#text.setAttribute("aria-busy", Boolean(run));
    setChildren(this.#progress, run?.firstToken === null && progressLine(run));
    setChildren(this.#problem, !run && problemLine(this.#app, node));
    const figures = h("span.statistics", statisticsText(node, run));
    setChildren(this.#foot, run ? figures : this.#footOf(node, path, figures));
  }

  /** Opens the whole text for editing. */
  editLast() {
    const path = shownPath(this.#app.conversation);
    if (path.length) editInPlace(this.#text, asText(path), "Edit the story", (text) => this.#app.rewrite(text));
  }

  #footOf(node, path, figures) {
    const text = asText(path);
    const isByModel = node.role === "assistant";
    const isCut = this.#app.model && fitting(path, this.#app.model.contextLength) !== text;
    return [
      isByModel && node.state === "done" && node.finish === "stop" && h("p.the-end", "The End"),
      isCut && h("p.note-line", "The story has outgrown the model's context: it goes on from the last part only."),
      h(
        "div.message-foot",
        versionSwitch(this.#app, node, allVersions(this.#app.conversation).get(node.parent)),
        h(
          "span.actions",
          isByModel && iconButton("again", "Tell this part differently", () => this.#app.regenerate(node)),
          isByModel && iconButton("close", "Take this part back", () => this.#app.takeBack(node)),
          iconButton("edit", "Edit the story", () => this.editLast()),
          copyButton(() => text, "Copy the story"),
        ),
        figures,
      ),
    ];
  }
}

/** Sets the text of an element; text that only grows is appended, so that a selection stays. */
function showText(element, text) {
  const old = element.textContent;
  if (text === old) return;
  if (old && text.startsWith(old)) element.firstChild.appendData(text.slice(old.length));
  else element.replaceChildren(text);
}

function emptyStory(app) {
  const isStories = app.model?.id === "stories";
  const opening = (text) => h("li", h("button.opening", { onclick: () => app.submit(text) }, text));
  return h(
    "div.empty",
    h("h1", "How does the story begin?"),
    h("p.lead", isStories ? ABOUT_STORIES : "Write the beginning of a text, and the model goes on with it."),
    isStories && h("ul.openings", { "aria-label": "Openings" }, OPENINGS.map(opening)),
    app.model && h("p.facts", `${app.model.id} · ${app.model.facts}`),
  );
}
