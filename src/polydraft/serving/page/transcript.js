// One text on the page: a span per token, added once per frame, pointed at or walked by keys.
import { eachFrame, make } from "./dom.js";
import { tokenClass } from "./kinds.js";

export class Transcript {
  tokens = [];
  horizon = 1;
  #box;
  #spans = [];
  #current = -1;
  #soon = eachFrame(() => this.flush());

  /** `onPick(token, index, walked)`: a token is pointed at, or was walked to by a key. */
  constructor(box, onPick) {
    this.#box = box;
    this.onPick = onPick;
    const pointed = (event) => {
      const span = event.target.closest(".token");
      if (span) this.pick(Number(span.dataset.index), false);
    };
    box.addEventListener("pointerover", pointed);
    box.addEventListener("click", pointed);
    box.addEventListener("focus", () => {
      if (this.#current < 0 && box.matches(":focus-visible")) this.pick(0, true);
    });
    box.addEventListener("keydown", (event) => this.#key(event));
  }

  clear() {
    this.tokens = [];
    this.#spans = [];
    this.#current = -1;
    this.#box.replaceChildren();
  }

  add(tokens) {
    this.tokens.push(...tokens);
    this.#soon();
  }

  /** Puts the tokens that are not yet on the page there; stays at the end if the reader was there. */
  flush() {
    const box = this.#box;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const fresh = this.tokens.slice(this.#spans.length).map((token) => {
      const span = make("span", tokenClass(token, this.horizon), token.text);
      span.dataset.index = this.#spans.push(span) - 1;
      return span;
    });
    box.append(...fresh);
    if (atEnd) box.scrollTop = box.scrollHeight;
  }

  /** Shows the first `count` tokens and keeps the place of the others. */
  reveal(count) {
    this.#spans.forEach((span, index) => span.classList.toggle("later", index >= count));
  }

  pick(index, walked) {
    const span = this.#spans[index];
    if (!span) return;
    this.leave();
    this.#current = index;
    span.classList.add("current");
    this.onPick(this.tokens[index], index, walked);
    if (walked) span.scrollIntoView({ block: "nearest" });
    this.#uncover(span);
  }

  /** On narrow screens the figures lie over the foot of the page: moves the token out from under them. */
  #uncover(span) {
    const sheet = document.querySelector(".sheet");
    const hidden = span.getBoundingClientRect().bottom - sheet.getBoundingClientRect().top;
    if (hidden > 0 && getComputedStyle(sheet).position === "fixed") window.scrollBy(0, hidden + 8);
  }

  /** No token is current. */
  leave() {
    this.#spans[this.#current]?.classList.remove("current");
    this.#current = -1;
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const to = {
      ArrowRight: () => this.#current + 1,
      ArrowLeft: () => this.#current - 1,
      ArrowDown: () => this.#onLine(1),
      ArrowUp: () => this.#onLine(-1),
      Home: () => 0,
      End: () => this.#spans.length - 1,
    }[event.key];
    if (!to) return;
    event.preventDefault();
    this.pick(to(), true);
  }

  /** The token nearest above (-1) or below (1) the current one; the current one where there is no such line. */
  #onLine(sign) {
    const place = (index) => this.#spans[index].getClientRects()[0];
    if (this.#current < 0) return 0;
    const from = place(this.#current);
    let nearest = this.#current;
    let line = null;
    let least = Infinity;
    for (let i = this.#current + sign; i >= 0 && i < this.#spans.length; i += sign) {
      const box = place(i);
      if (!box || Math.abs(box.top - from.top) < from.height / 2) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) > from.height / 2) break;
      const gap = Math.abs(box.left + box.right - from.left - from.right);
      if (gap < least) [least, nearest] = [gap, i];
    }
    return nearest;
  }
}
