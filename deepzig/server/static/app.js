/**
 * The page's start and its switchboard: which place is shown, which answers are running, what a click leads to.
 *
 * The views call back here. A place is the part of the address after `#`: nothing for a new conversation, `c=ID` for
 * one that is kept, `status`.
 */

import { onKeyNeeded } from "./api.js";
import { announce, Narrator, toast } from "./announce.js";
import { ChatView } from "./chat.js";
import { Composer } from "./composer.js";
import { addNode, isEmpty, lastNode, newConversation, ROOT, shownPath, titleOf } from "./conversations.js";
import { isComposing } from "./dom.js";
import { Follower } from "./follower.js";
import { follow, requestFor, Run } from "./generation.js";
import { askForKey } from "./key_prompt.js";
import { readModel } from "./model.js";
import { Sidebar } from "./sidebar.js";
import { StatusView } from "./status.js";
import { Store } from "./store.js";
import { StoryView } from "./story.js";
import { CONDITIONS, Topbar } from "./topbar.js";

const RETRY_MS = 1500; // while the server is away or loads
const AWAY = new Set([0, 404, 503]); // what an answer fails with when the server is gone, has another model, or loads

class App {
  store = new Store();
  model = null; // as of model.js
  condition = "connecting"; // ready, connecting, loading, offline, locked
  conversation = newConversation("chat", null);
  isStatus = false; // which is shown instead of the conversation
  #runs = new Map(); // id of a message -> Run
  #main = byId("main");
  #view = null;
  #sidebar = new Sidebar(this, byId("sidebar"));
  #topbar = new Topbar(this, byId("topbar"));
  #composer = new Composer(this, byId("composer"));
  #follower = new Follower(this.#main);
  #connecting = null; // the promise of `connect`

  async start() {
    onKeyNeeded(async (wasWrong) => {
      this.#setCondition("locked");
      const key = await askForKey(wasWrong);
      if (key && this.model) this.#setCondition("ready");
      return key;
    });
    byId("composer").prepend(this.#follower.button);
    document.querySelector(".skip-link").addEventListener("click", (event) => {
      event.preventDefault(); // its address would be taken for a place
      this.#composer.focus();
    });
    byId("scrim").addEventListener("click", () => this.toggleSidebar(false));
    byId("sidebar").addEventListener("focusout", ({ relatedTarget }) => {
      if (relatedTarget?.closest(".stage")) this.toggleSidebar(false); // it would lie over what has the focus
    });
    document.addEventListener("keydown", (event) => this.#key(event));
    window.addEventListener("hashchange", () => this.#route());
    window.addEventListener("pagehide", () => this.store.flush(true));
    this.store.onWriteFailed = () => toast("The browser does not keep conversations any more: is its storage full?");
    this.store.onChangeElsewhere = (id) => this.#refresh(id);
    await this.store.open();
    this.#route();
    await this.connect();
  }

  // Places

  #route() {
    this.toggleSidebar(false);
    const place = location.hash.slice(1);
    this.isStatus = place === "status";
    const id = place.startsWith("c=") ? place.slice(2) : null;
    if (!this.isStatus)
      this.conversation = this.store.get(id) ?? (this.conversation.id === id ? this.conversation : this.#fresh());
    this.#mount();
  }

  #fresh() {
    return newConversation(this.model && !this.model.tellsRoles ? "story" : "chat", this.model?.id ?? null);
  }

  /** Goes to a new conversation. */
  openNew() {
    if (location.hash) history.pushState(null, "", location.pathname + location.search);
    this.#route();
    this.#composer.focus();
  }

  setMode(mode) {
    this.conversation.mode = mode;
    this.#mount();
    this.#composer.focus();
  }

  rename(title) {
    this.conversation.title = title.slice(0, 200);
    this.store.put(this.conversation);
    this.#showTitle();
    this.showList();
  }

  /** Shows what another tab has changed; what the reader is writing stays. */
  #refresh(id) {
    this.showList();
    if (id !== this.conversation.id || this.isStatus) return;
    this.#view.show();
    this.#showContext();
    this.#followText();
  }

  /** Shows which conversations there are. */
  showList() {
    this.#sidebar.show();
  }

  #mount() {
    this.#view?.stop?.();
    if (this.isStatus) this.#view = new StatusView(this);
    else this.#view = this.conversation.mode === "story" ? new StoryView(this) : new ChatView(this);
    this.#main.replaceChildren(this.#view.element);
    document.body.classList.toggle("shows-status", this.isStatus);
    this.#view.show();
    this.#showAround();
    this.#follower.goTo(!this.isStatus);
    this.#keepFocus();
  }

  /** Keyboards and screen readers go on from the text if what had the focus is gone. */
  #keepFocus() {
    if (document.activeElement === document.body) this.#main.focus({ preventScroll: true });
  }

  #showAround() {
    this.showList();
    this.#topbar.show();
    this.#showComposer();
    this.#showTitle();
  }

  #showTitle() {
    const title = this.isStatus ? "Status" : this.conversation.title;
    document.title = title ? `${title} · deepzig` : "deepzig";
  }

  #showComposer() {
    const isStory = this.conversation.mode === "story";
    const hasBegun = isStory && Boolean(lastNode(this.conversation));
    const isReady = this.condition === "ready";
    const invitation = hasBegun ? "Add a sentence of your own" : isStory ? "It was a dark night…" : "Ask something";
    this.#composer.set({
      label: isStory ? "Your part of the story" : "Your message",
      placeholder: isReady ? invitation : CONDITIONS[this.condition],
      hint: hasBegun ? "Enter lets the model go on" : "Enter sends, Shift Enter breaks the line",
      action: hasBegun ? "Go on" : isStory ? "Begin" : "Send",
      mayBeEmpty: hasBegun,
      isRunning: Boolean(this.runIn(this.conversation)),
      isDisabled: !isReady,
    });
    this.#showContext();
  }

  #showContext() {
    const withStats = shownPath(this.conversation).findLast((node) => node.stats?.contextTokens);
    const run = this.runIn(this.conversation);
    const running = run?.progress && run.progress.total + run.tokens;
    this.#composer.showContext(running ?? withStats?.stats.contextTokens, this.model?.contextLength);
  }

  toggleSidebar(isOpen) {
    const isLeft = isScrimShown() && document.activeElement.closest("#sidebar");
    document.body.classList.toggle("sidebar-open", isOpen);
    byId("scrim").hidden = !isOpen;
    if (isOpen) document.querySelector("#sidebar .new-button").focus();
    else if (isLeft) document.querySelector("#topbar .only-narrow").focus();
  }

  // The server

  /** Waits for the server and its model, which may be another one than before; asks for a key if one is needed. */
  connect() {
    return (this.#connecting ??= this.#connect().finally(() => (this.#connecting = null)));
  }

  async #connect() {
    for (;;) {
      try {
        this.model = await readModel();
        break;
      } catch (error) {
        if (error.status === 401) return this.#setCondition("locked"); // topbar.js offers to ask again
        if (!(error.status === 0 || error.status === 503)) toast(error.message);
        this.#setCondition(error.status === 503 ? "loading" : "offline");
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
    this.condition = "ready";
    if (isEmpty(this.conversation) && !this.isStatus) {
      this.conversation = this.#fresh();
      this.#mount();
    } else {
      this.#view.show();
      this.#showAround();
    }
    if ([document.body, this.#main].includes(document.activeElement)) this.#composer.focus();
  }

  #setCondition(condition) {
    this.condition = condition;
    this.#topbar.show();
    this.#showComposer();
  }

  // Answers

  runOf(node) {
    return this.#runs.get(node.id);
  }

  /** What is being written in a conversation, if anything. */
  runIn(conversation) {
    return [...this.#runs.values()].find((run) => run.conversation === conversation);
  }

  /** The reader's words, then the model's. In a story either may be missing. */
  submit(text) {
    const { conversation } = this;
    if (this.condition !== "ready" || this.runIn(conversation)) return;
    let parent = lastNode(conversation)?.id ?? ROOT;
    const words = conversation.mode === "story" ? joined(conversation, text) : text.trim();
    if (words) parent = addNode(conversation, parent, "user", words).id;
    this.#answer(conversation, parent);
  }

  /** Whether an answer may begin now; says why not. */
  #mayAnswer() {
    if (this.runIn(this.conversation)) toast("An answer is being written. Stop it first.");
    else if (this.condition !== "ready") toast(`${CONDITIONS[this.condition]}.`);
    else return true;
    return false;
  }

  /** Another version of an answer. */
  regenerate(node) {
    if (this.#mayAnswer()) this.#answer(this.conversation, node.parent);
  }

  /** Opens what the reader wrote last for editing. */
  editLast() {
    this.#view.editLast();
  }

  /** Another version of what the reader said, and an answer to it. */
  edit(node, text) {
    if (!this.#mayAnswer()) return;
    this.#answer(this.conversation, addNode(this.conversation, node.parent, "user", text).id);
  }

  /** Another version of the whole story; the model does not go on by itself. */
  rewrite(text) {
    const { conversation } = this;
    if (!this.#mayAnswer()) return;
    addNode(conversation, ROOT, "user", text);
    conversation.title = titleOf(text);
    this.store.put(conversation);
    this.#mount();
  }

  /** Shows the story without its last passage, which stays a version of it. */
  takeBack(node) {
    delete this.conversation.chosen[node.parent];
    this.store.put(this.conversation);
    this.#mount();
  }

  /** Goes on with an answer that was stopped or cut off. */
  goOn(node) {
    if (this.#mayAnswer()) this.#follow(this.conversation, node);
  }

  /** Shows another version. */
  show(node) {
    this.conversation.chosen[node.parent] = node.id; // below it stands what was shown last
    this.store.put(this.conversation);
    this.#view.show();
    this.#showAround();
    this.#keepFocus();
  }

  /** Stops the answer of the conversation that is shown. */
  stop() {
    const run = this.runIn(this.conversation);
    if (!run) return;
    run.stop();
    announce("Stopped");
  }

  /** Stops all answers, or those of one conversation. */
  stopAll(conversation = null) {
    for (const run of this.#runs.values()) if (!conversation || run.conversation === conversation) run.stop();
  }

  #answer(conversation, parent) {
    const node = addNode(conversation, parent, "assistant", "", "streaming");
    if (location.hash !== `#c=${conversation.id}`) history.pushState(null, "", `#c=${conversation.id}`);
    this.#follow(conversation, node);
  }

  async #follow(conversation, node) {
    const run = new Run(conversation, node);
    const narrator = new Narrator();
    const given = node.content.length;
    const isShown = () => conversation === this.conversation;
    this.#runs.set(node.id, run);
    this.store.put(conversation);
    this.#follower.isFollowing = true;
    if (isShown()) this.#view.show();
    this.#showAround();
    this.#keepFocus();
    announce("The answer is being written");
    await follow(run, requestFor(conversation, node, this.model), () => {
      if (isShown()) narrator.update(node.content.slice(given));
      this.#changed(conversation, node);
    });
    this.#runs.delete(node.id);
    this.#waiting.delete(node); // else the next frame would replace what can be clicked by now
    conversation.updated = Date.now();
    this.#keep(conversation);
    if (isShown()) {
      narrator.finish(node.content.slice(given));
      this.#view.update?.(node);
    }
    this.#showAround();
    this.#followText();
    if (AWAY.has(node.error?.status)) this.connect();
  }

  /** Keeps what an answer has changed, unless the conversation was deleted meanwhile. */
  #keep(conversation) {
    if (this.store.get(conversation.id)) this.store.put(conversation);
  }

  #waiting = new Set(); // messages that are drawn with the next frame

  #changed(conversation, node) {
    this.#keep(conversation);
    if (conversation !== this.conversation || this.isStatus || this.#waiting.has(node)) return;
    this.#waiting.add(node);
    requestAnimationFrame(() => {
      if (!this.#waiting.delete(node) || conversation !== this.conversation) return;
      this.#view.update?.(node);
      this.#showContext();
      this.#followText();
    });
  }

  #followText() {
    if (!this.isStatus) this.#follower.follow();
  }

  #key(event) {
    const withControl = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    if (document.querySelector("dialog[open]") || isComposing(event)) return;
    if (key === "escape" && isScrimShown()) this.toggleSidebar(false);
    else if (key === "escape") this.stop();
    else if (withControl && event.shiftKey && key === "o") this.openNew();
    else if (withControl && !event.shiftKey && key === "k") (this.toggleSidebar(true), this.#sidebar.focusSearch());
    else return;
    event.preventDefault();
  }
}

function byId(id) {
  return document.getElementById(id);
}

/** Whether the list of conversations lies over the rest, not beside it. */
function isScrimShown() {
  return byId("scrim").checkVisibility();
}

/** The reader's words for a story: set off from what stands before, unless they begin with a mark. */
function joined(conversation, text) {
  if (!text.trim()) return "";
  const last = lastNode(conversation);
  const needsBlank = last && !/\s$/.test(last.content) && /^[\p{L}\p{N}"“(]/u.test(text);
  return (needsBlank ? " " : "") + text;
}

new App().start();
