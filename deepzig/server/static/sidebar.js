/** The list of conversations, search, and the ways to status and settings. Made by app.js; reads the store. */

import { asText, shownPath } from "./conversations.js";
import { h, icon, iconButton, setChildren } from "./dom.js";
import { openSettings } from "./settings.js";
import { toast } from "./announce.js";

const DAY_MS = 86_400_000;

export class Sidebar {
  #app;
  #list = h("div.conversation-list");
  #search = h("input.search", {
    type: "search",
    placeholder: "Search",
    "aria-label": "Search conversations",
    oninput: () => this.show(),
  });

  constructor(app, element) {
    this.#app = app;
    const onclick = (event) => (event.preventDefault(), app.openNew());
    element.append(
      h(
        "div.sidebar-head",
        h("a.brand", { href: "#", onclick }, icon("mark"), "deepzig"),
        iconButton("close", "Close the list", () => app.toggleSidebar(false), ".only-narrow"),
      ),
      h("button.new-button", { onclick, title: "Ctrl Shift O" }, icon("plus"), "New conversation"),
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
    const rows = (conversations) => conversations.map((conversation) => this.#row(conversation));
    setChildren(
      this.#list,
      [...groups].map(([name, members]) => h("section", h("h2.list-title", name), h("ul", rows(members)))),
      !found.length && h("p.hint.list-empty", wanted ? "Nothing found." : "Conversations stay in this browser."),
    );
    if (focused) document.getElementById(focused)?.focus();
  }

  focusSearch() {
    this.#search.focus();
    this.#search.select();
  }

  #row(conversation) {
    const { id } = conversation;
    const isOpen = this.#app.conversation.id === id && !this.#app.isStatus;
    const title = conversation.title || "Untitled";
    const remove = () => this.#remove(conversation);
    return h(
      isOpen ? "li.row.open" : "li.row",
      h(
        "a",
        { id: `open-${id}`, href: `#c=${id}`, "aria-current": isOpen && "page", title },
        icon(conversation.mode === "story" ? "quill" : "chat"),
        h("span.row-title", title),
        this.#app.runIn(conversation) && h("span.pulse", { title: "An answer is being written" }),
      ),
      iconButton("trash", `Delete ${title}`, remove, ".small.row-delete", { id: `delete-${id}` }),
    );
  }

  async #remove(conversation) {
    this.#app.stopAll(conversation);
    await this.#app.store.remove(conversation.id);
    if (this.#app.conversation.id === conversation.id) this.#app.openNew();
    this.show();
    const undo = () => {
      this.#app.store.put(conversation);
      this.show();
    };
    toast("Conversation deleted.", { label: "Undo", run: undo });
  }
}

function matches(conversation, wanted) {
  return [conversation.title, asText(shownPath(conversation))].some((text) => text.toLowerCase().includes(wanted));
}

function ageOf({ updated }) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (updated >= midnight) return "Today";
  if (updated >= midnight - DAY_MS) return "Yesterday";
  return updated >= midnight - 7 * DAY_MS ? "Last seven days" : "Older";
}
