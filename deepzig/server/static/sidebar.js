/** The list of conversations, search, and the ways to status and settings. Made by app.js; reads the store. */

import { asText, shownPath } from "./conversations.js";
import { h, icon, iconButton, svg } from "./dom.js";
import { openSettings } from "./settings.js";
import { toast } from "./announce.js";

const DAY_MS = 86_400_000;
export class Sidebar {
  #app;
  #list = h("div.conversation-list");
  #search = h("input.search", { type: "search", placeholder: "Search", "aria-label": "Search conversations" });

  constructor(app, element) {
    this.#app = app;
    this.#search.addEventListener("input", () => this.show());
    element.append(
      h(
        "div.sidebar-head",
        h("a.brand", { href: "#", onclick: (event) => (event.preventDefault(), app.open(null)) }, mark(), "deepzig"),
        iconButton("close", "Close the list", () => app.toggleSidebar(false), ".only-narrow"),
      ),
      h(
        "button.new-button",
        { onclick: () => app.open(null), title: "Ctrl Shift O" },
        icon("plus"),
        "New conversation",
      ),
      h("div.search-box", icon("search"), this.#search),
      this.#list,
      h(
        "div.sidebar-foot",
        h("a.foot-link", { href: "#status" }, icon("status"), "Status"),
        h("button.foot-link", { onclick: () => openSettings(app) }, icon("settings"), "Settings"),
      ),
    );
  }

  /** Shows the conversations that the search finds. */
  show() {
    const wanted = this.#search.value.trim().toLowerCase();
    const found = this.#app.store.list().filter((conversation) => !wanted || matches(conversation, wanted));
    const groups = Map.groupBy(found, ageOf);
    const focused = this.#list.contains(document.activeElement) ? document.activeElement.id : null;
    this.#list.replaceChildren(
      ...[...groups].map(([name, conversations]) =>
        h(
          "section",
          h("h2.list-title", name),
          h("ul", ...conversations.map((conversation) => this.#row(conversation))),
        ),
      ),
      ...(found.length
        ? []
        : [h("p.hint.list-empty", wanted ? "Nothing found." : "Conversations stay in this browser.")]),
    );
    if (focused) document.getElementById(focused)?.focus();
  }

  focusSearch() {
    this.#search.focus();
    this.#search.select();
  }

  #row(conversation) {
    const isOpen = this.#app.conversation?.id === conversation.id && this.#app.place !== "status";
    const title = conversation.title || "Untitled";
    return h(
      isOpen ? "li.row.open" : "li.row",
      h(
        "a",
        { id: `open-${conversation.id}`, href: `#c=${conversation.id}`, "aria-current": isOpen ? "page" : null, title },
        icon(conversation.mode === "story" ? "quill" : "chat"),
        h("span.row-title", title),
        this.#app.isRunning(conversation) && h("span.pulse", { title: "An answer is being written" }),
      ),
      iconButton("trash", `Delete ${title}`, () => this.#remove(conversation), ".small.row-delete", {
        id: `delete-${conversation.id}`,
      }),
    );
  }

  async #remove(conversation) {
    this.#app.stopAll(conversation);
    await this.#app.store.remove(conversation.id);
    if (this.#app.conversation?.id === conversation.id) this.#app.open(null);
    this.show();
    const undo = () => {
      this.#app.store.put(conversation);
      this.show();
    };
    toast("Conversation deleted.", { label: "Undo", run: undo });
  }
}

function mark() {
  return svg(
    "svg",
    { class: "mark", viewBox: "0 0 32 32", "aria-hidden": "true" },
    svg("rect", { width: 32, height: 32, rx: 8 }),
    svg("path", { d: "M8 10h16L8 22h16" }),
  );
}

function matches(conversation, wanted) {
  return (
    conversation.title.toLowerCase().includes(wanted) || asText(shownPath(conversation)).toLowerCase().includes(wanted)
  );
}

function ageOf({ updated }) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (updated >= midnight) return "Today";
  if (updated >= midnight - DAY_MS) return "Yesterday";
  return updated >= midnight - 7 * DAY_MS ? "Last seven days" : "Older";
}
