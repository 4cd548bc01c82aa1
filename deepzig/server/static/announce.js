/**
 * What screen readers hear, and the short messages in the corner. Called by the views; knows nothing of conversations.
 *
 * An answer is read out in whole sentences, at most every two seconds: word by word would drown the listener.
 */

import { h, iconButton, textButton } from "./dom.js";

const SENTENCE_INTERVAL_MS = 2000;
const TOAST_MS = 6000;

/** Say one thing, politely. */
export function announce(text) {
  const region = document.getElementById("announcements");
  region.append(h("p", text));
  while (region.childElementCount > 20) region.firstElementChild.remove();
}

/** Reads a growing text out. `update` is given the whole text so far, `finish` says the rest. */
export class Narrator {
  #said = 0;
  #last = performance.now();

  update(text) {
    if (performance.now() - this.#last < SENTENCE_INTERVAL_MS) return;
    const end = lastSentenceEnd(text, this.#said);
    if (end > this.#said) this.#say(text, end);
  }

  finish(text) {
    this.#say(text, text.length);
  }

  #say(text, end) {
    const piece = text.slice(this.#said, end).trim();
    this.#said = end;
    this.#last = performance.now();
    if (piece) announce(piece);
  }
}

/** Where the last whole sentence after `from` ends; `from` if there is none. */
function lastSentenceEnd(text, from) {
  for (let end = text.length - 1; end > from; end--) {
    if (/\s/.test(text[end]) && /[.!?:;。！？"”\n]/.test(text[end - 1])) return end;
  }
  return from;
}

/** A short message in the corner, with at most one thing to do about it. */
export function toast(text, action) {
  const close = () => box.remove();
  const box = h(
    "div.toast",
    h("span", text),
    action && textButton(action.label, () => (close(), action.run())),
    iconButton("close", "Dismiss", close),
  );
  document.getElementById("toasts").append(box);
  setTimeout(close, TOAST_MS);
}
