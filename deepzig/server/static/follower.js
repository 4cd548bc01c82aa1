/** Keeps the end of a growing text in sight of a reader who is there; its button leads others there. */

import { iconButton } from "./dom.js";

const NEAR_END = 120; // px from the end: the reader follows the text

export class Follower {
  isFollowing = true;
  button = iconButton("down", "To the end", () => this.goTo(), ".to-end", { hidden: true });
  #element;

  constructor(element) {
    this.#element = element;
    element.addEventListener("scroll", () => this.#onScroll(), { passive: true });
  }

  #onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.#element;
    this.isFollowing = scrollHeight - scrollTop - clientHeight < NEAR_END;
    this.button.hidden = this.isFollowing;
  }

  follow() {
    if (this.isFollowing) this.goTo();
  }

  /** Shows the end, or the beginning of what is no such text. */
  goTo(isEnd = true) {
    this.#element.scrollTop = isEnd ? this.#element.scrollHeight : 0;
    this.isFollowing = true;
    this.button.hidden = true;
  }
}
