// The legend with its counts, acceptance by position, and the race on one time axis.
import { bar, make } from "./dom.js";
import { fixed } from "./format.js";
import { legendEntries, tokenClass } from "./kinds.js";

/** Fills the list `box`: a sample, what it means and how many there are. */
export function drawLegend(box, tally, horizon) {
  box.replaceChildren(...legendEntries(horizon).map(({ key, classes, words }) => {
    const sample = make("span", classes, "abc");
    sample.setAttribute("aria-hidden", "true");
    const item = make("li", "", sample, make("span", "words", words), make("span", "number", String(tally.kinds[key] ?? 0)));
    item.dataset.key = key;
    return item;
  }));
}

/** Fills the table body `box`: the share of the steps that kept the draft at each position. */
export function drawAcceptance(box, shares) {
  box.replaceChildren(...shares.map((share, s) => {
    const classes = tokenClass({ kind: "drafted", origin: s + 1, text: "a" }, shares.length);
    const place = make("th", "", make("span", classes, String(s + 1)));
    place.scope = "row";
    return make("tr", "", place, make("td", "", bar(share)), make("td", "number", `${(100 * share).toFixed(0)} %`));
  }));
}

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, classes, attributes) {
  const element = document.createElementNS(SVG, tag);
  element.setAttribute("class", classes);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** The points of a line through (seconds, tokens so far), in a box of 100 by 100, the origin below left. */
export function racePoints(times, seconds, tokens) {
  const point = (time, count) => `${(100 * time) / seconds},${100 - (100 * count) / tokens}`;
  return ["0,100", ...times.map((time, index) => point(time, index + 1))].join(" ");
}

/** Draws into the figure `box` how many tokens each of `lanes` ({name, times}) had after so many seconds. */
export function drawRace(box, lanes) {
  const seconds = Math.max(...lanes.map(({ times }) => times.at(-1) ?? 0));
  const tokens = Math.max(...lanes.map(({ times }) => times.length));
  box.querySelector("svg").replaceChildren(...lanes.map(({ name, times }) => shape("polyline", name, {
    points: tokens ? racePoints(times, seconds, tokens) : "", "vector-effect": "non-scaling-stroke",
  })));
  box.querySelector(".most").textContent = `${tokens} tokens`;
  box.querySelector(".last").textContent = `${fixed(seconds, 1)} s`;
}
