// A race: the same request plainly and drafted, one after the other, then both on one time axis.
import { drawRace } from "./charts.js";
import { fixed, percent, visible } from "./format.js";
import { firstDifference } from "./statistics.js";

/** Whether two finished texts are equal, in a line. */
export function verdict(plain, drafted) {
  const at = firstDifference(plain, drafted);
  if (at < 0) return `Equal: both texts are the same ${plain.length} tokens.`;
  const said = [plain, drafted].map((text) => (text[at] ? `${visible(text[at].text)} (${percent(text[at].logprob)})` : "nothing"));
  return `Different from token ${at + 1} on, where plain says ${said[0]} and drafted ${said[1]}. ` +
    "In bfloat16 rounding decides between tokens that are nearly as likely; in float32 this should not happen.";
}

/** How much faster the drafted text came, by the tallies of both. */
export function speedup(plain, drafted) {
  const [slow, fast] = [plain.speed, drafted.speed];
  return `Plain ${fixed(slow, 1)}, drafted ${fixed(fast, 1)} tokens/s: ${fixed(fast / slow, 2)} times as fast.`;
}

/** Shows the figure, the verdict and the replay of two panes. */
export class Race {
  #box;
  #panes;
  #replaying = 0;

  constructor(box, plain, drafted) {
    this.#box = box;
    this.#panes = [plain, drafted];
    box.querySelector("button").addEventListener("click", () => this.#replay());
  }

  /** Draws the lines as far as they have come; the verdict once both texts have ended. */
  draw() {
    const [plain, drafted] = this.#panes;
    const over = Boolean(plain.finish && drafted.finish);
    drawRace(this.#box, this.#panes);
    const words = over
      ? `${verdict(plain.transcript.tokens, drafted.transcript.tokens)} ${speedup(plain.tally, drafted.tally)}` : "";
    const line = this.#box.querySelector(".verdict");
    if (line.textContent !== words) line.textContent = words;
    this.#box.querySelector("button").disabled = !over;
  }

  /** Ends a replay: all tokens are shown. */
  rest() {
    cancelAnimationFrame(this.#replaying);
    for (const pane of this.#panes) pane.showAt(Infinity);
  }

  #replay() {
    this.rest();
    const start = performance.now();
    const end = Math.max(...this.#panes.map(({ times }) => times.at(-1)));
    const frame = () => {
      const seconds = (performance.now() - start) / 1000;
      for (const pane of this.#panes) pane.showAt(seconds);
      if (seconds < end) this.#replaying = requestAnimationFrame(frame);
      else for (const pane of this.#panes) pane.draw();
    };
    frame();
  }
}
