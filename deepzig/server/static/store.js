/**
 * Keeps conversations in the browser: an IndexedDB database, read once and written behind. Knows nothing of what a
 * conversation holds but `id` and `updated`: conversations.js joins two tabs' work.
 *
 * Where the browser forbids storage (some private windows), conversations last as long as the page.
 */

import { adopt, join, markInterrupted } from "./conversations.js";

const DATABASE = "deepzig";
const TABLE = "conversations";
const WRITE_DELAY_MS = 400; // an answer that grows is written this often

export class Store {
  #database = null;
  #all = new Map();
  #waiting = new Map(); // id -> timer
  #channel = "BroadcastChannel" in window ? new BroadcastChannel("deepzig") : null;

  isPersistent = false;
  onWriteFailed = () => {}; // called once: the disk is full, or the browser has closed the database
  onChangeElsewhere = () => {}; // called with the id of a conversation that another tab has changed

  /** Reads all conversations. */
  async open() {
    try {
      this.#database = await openDatabase();
      for (const conversation of await this.#request("readonly", (table) => table.getAll())) {
        markInterrupted(conversation);
        this.#all.set(conversation.id, conversation);
      }
      this.isPersistent = true;
    } catch (error) {
      console.warn("conversations will not be kept:", error);
    }
    this.#channel?.addEventListener("message", ({ data }) => this.#reload(data));
  }

  /** All conversations, last used first. */
  list() {
    return [...this.#all.values()].sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.#all.get(id);
  }

  /** Keeps a conversation; written within WRITE_DELAY_MS, however often this is called. */
  put(conversation) {
    const { id } = conversation;
    this.#all.set(id, conversation);
    const write = () => this.#write(id);
    if (!this.#waiting.has(id)) this.#waiting.set(id, setTimeout(write, WRITE_DELAY_MS));
  }

  /** Writes what waits, now. `isLast`: the page is being left, and only a first request is made. */
  flush(isLast = false) {
    return Promise.all([...this.#waiting.keys()].map((id) => this.#write(id, isLast)));
  }

  /** Deletes a conversation; a write that waits finds none. */
  async remove(id) {
    this.#all.delete(id);
    await this.#request("readwrite", (table) => table.delete(id));
    this.#channel?.postMessage(id);
  }

  async clear() {
    for (const { id } of this.list()) await this.remove(id);
  }

  async #write(id, isLast = false) {
    clearTimeout(this.#waiting.get(id));
    this.#waiting.delete(id);
    const conversation = this.#all.get(id);
    if (!conversation) return;
    try {
      await this.#request("readwrite", (table) => {
        if (isLast) return table.put(conversation);
        const read = table.get(id); // another tab may have written since
        read.onsuccess = () => table.put(read.result ? join(conversation, read.result) : conversation);
        return read;
      });
      this.#channel?.postMessage(id);
    } catch (error) {
      console.warn("a conversation was not kept:", error);
      if (this.isPersistent) this.onWriteFailed();
      this.isPersistent = false;
    }
  }

  async #reload(id) {
    const theirs = await this.#request("readonly", (table) => table.get(id));
    const ours = this.#all.get(id);
    if (!theirs) this.#all.delete(id);
    else if (ours) adopt(ours, theirs);
    else this.#all.set(id, theirs);
    this.onChangeElsewhere(id);
  }

  #request(access, work) {
    if (!this.#database) return Promise.resolve(undefined);
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction(TABLE, access);
      const request = work(transaction.objectStore(TABLE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    });
  }
}

function openDatabase() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
