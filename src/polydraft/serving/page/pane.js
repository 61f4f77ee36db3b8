// One pane: a text, its figures as they come, and its totals at the end.
import { byId, eachFrame } from "./dom.js";
import { fixed, totals } from "./format.js";
import { Silence, stream } from "./client.js";
import { Tally } from "./statistics.js";
import { Transcript } from "./transcript.js";

export class Pane {
  times = []; // seconds from the request to each token
  finish = null; // why the text ended; null while it has not
  tally = new Tally();
  #started = null; // when the request went out, while it is under way
  #element;
  #soon = eachFrame(() => this.draw());

  /** `name`: "drafted" or "plain". `onPick` as of Transcript; `onDraw` after every drawing. */
  constructor(name, { onPick, onDraw }) {
    this.name = name;
    this.onDraw = onDraw;
    this.#element = byId("pane").content.cloneNode(true).firstElementChild;
    this.#element.dataset.pane = name;
    this.#part("h2").textContent = name === "drafted" ? "Drafted" : "Plain";
    this.#part(".text").setAttribute("aria-label", `${name} text`);
    this.transcript = new Transcript(this.#part(".text"), onPick);
    this.#figures(this.tally, 0);
  }

  get element() {
    return this.#element;
  }

  /** The text so far. */
  get said() {
    return this.transcript.tokens.map(({ text }) => text).join("");
  }

  #part = (selector) => this.#element.querySelector(selector);

  clear(horizon) {
    this.times = [];
    this.finish = null;
    this.tally = new Tally();
    this.transcript.clear();
    this.transcript.horizon = horizon;
    this.#part(".totals").textContent = "";
    this.draw();
  }

  /** Streams the text of a request into the pane. Throws as `stream` does; what came stays.
   *  Until the server has taken the request, which calls `begun`, the pane is as it was. */
  async run({ begun, ...asked }) {
    const moment = performance.now();
    let clock = null;
    const start = () => {
      begun();
      this.#started = moment;
      this.#element.classList.add("running");
      clock = setInterval(this.#soon, 200);
    };
    try {
      for await (const chunk of stream({ ...asked, begun: start })) this.#take(chunk);
      if (!this.finish) throw new Silence("The connection ended before the text did.");
    } finally {
      clearInterval(clock);
      this.#started = null;
      this.#element.classList.remove("running");
      this.transcript.flush();
      this.draw();
    }
  }

  #take({ choices, usage }) {
    const seconds = this.#elapsed;
    const [choice] = choices;
    const tokens = choice?.polydraft?.tokens ?? [];
    if (tokens.length) {
      this.tally.add(tokens, seconds);
      this.times.push(...tokens.map(() => seconds));
      this.transcript.add(tokens);
      this.#soon();
    }
    this.finish = choice?.finish_reason ?? this.finish;
    if (usage) this.#part(".totals").textContent = totals(usage, this.finish);
  }

  /** Seconds since the request; once it is over, up to the last token. */
  get #elapsed() {
    return this.#started === null ? this.tally.seconds : (performance.now() - this.#started) / 1000;
  }

  draw() {
    this.#figures(this.tally, this.#elapsed);
    this.onDraw(this);
  }

  #figures(tally, seconds) {
    this.#part(".speed").textContent = fixed(tally.speed, 1);
    this.#part(".per-step").textContent = fixed(tally.tokensPerStep, 2);
    this.#part(".tokens").textContent = String(tally.tokens);
    this.#part(".seconds").textContent = seconds.toFixed(1);
  }

  /** Shows the pane as it was `seconds` after its request. */
  showAt(seconds) {
    const past = new Tally();
    const tokens = this.transcript.tokens.filter((_, index) => this.times[index] <= seconds);
    tokens.forEach((token, index) => past.add([token], this.times[index]));
    this.transcript.reveal(tokens.length);
    this.#figures(past, Math.min(seconds, this.tally.seconds));
  }
}
