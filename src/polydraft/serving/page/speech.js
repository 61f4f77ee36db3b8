// What a screen reader is told: whole sentences of the text, and notices; politely, never token by token.
import { sentences } from "./format.js";

export class Speech {
  #box;
  #said = 0;

  constructor(box) {
    this.#box = box;
  }

  /** A new text begins. */
  begin() {
    this.#said = 0;
    this.say("");
  }

  say(words) {
    if (this.#box.textContent !== words) this.#box.textContent = words;
  }

  /** Says the sentences of `text` that have ended since the last time; at the end all that is left. */
  follow(text, ended) {
    const fresh = ended ? text.slice(this.#said) : sentences(text, this.#said);
    this.#said += fresh.length;
    if (fresh.trim()) this.say(fresh.trim());
  }
}
