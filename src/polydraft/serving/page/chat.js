// The chat: a new prompt continues it, the same one is answered again.
import { make } from "./dom.js";

export class Chat {
  #before = []; // turns, each a prompt and its answer
  #last = null; // the turn whose answer is in the panes
  #box;
  #anew;

  /** `box` shows all but the last answer; the button `anew` begins a new chat. */
  constructor(box, anew) {
    this.#box = box;
    this.#anew = anew;
    anew.addEventListener("click", () => {
      [this.#before, this.#last] = [[], null];
      this.#draw();
    });
  }

  /** The turns that come before an answer to `prompt`. */
  #until(prompt) {
    const goesOn = this.#last?.answer && this.#last.prompt !== prompt;
    return goesOn ? [...this.#before, this.#last] : this.#before;
  }

  /** The messages of a request for an answer to `prompt`. */
  messages(prompt) {
    const before = this.#until(prompt).flatMap((turn) =>
      [{ role: "user", content: turn.prompt }, { role: "assistant", content: turn.answer }]);
    return [...before, { role: "user", content: prompt }];
  }

  /** The server answers `prompt` now. */
  begin(prompt) {
    [this.#before, this.#last] = [this.#until(prompt), { prompt, answer: "" }];
    this.#draw();
  }

  /** What it has said so far. */
  said(answer) {
    this.#last.answer = answer;
  }

  #draw() {
    const turns = this.#before.flatMap(({ prompt, answer }) =>
      [make("p", "user", prompt), make("p", "assistant", answer)]);
    const now = this.#last ? [make("p", "user", this.#last.prompt)] : [];
    this.#box.replaceChildren(...turns, ...now);
    this.#anew.disabled = !this.#last;
  }
}
