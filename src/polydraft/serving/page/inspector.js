// What the model and the head thought of one token.
import { bar, make } from "./dom.js";
import { NOTHING, percent, visible } from "./format.js";
import { story, tokenClass } from "./kinds.js";

/** A table with a caption and rows of [name, share, figure]. */
function table(caption, heading, rows) {
  const body = rows.map(([name, share, figure, same]) => {
    const first = make("th", same ? "same" : "", name);
    first.scope = "row";
    return make("tr", "", first, make("td", "", bar(share)), make("td", "number", figure));
  });
  const title = make("th", "", heading);
  title.scope = "col";
  const figures = make("th", "number", "probability");
  figures.scope = "col";
  figures.colSpan = 2;
  return make(
    "table", "", make("caption", "", caption),
    make("thead", "", make("tr", "", title, figures)), make("tbody", "", ...body));
}

const fact = (name, value) => make("div", "", make("dt", "", name), make("dd", "", value));

/** Fills `box` with the token, number `index` of its text from 0. */
export function inspect(box, token, index, horizon) {
  const heading = make("p", "chosen", make("code", tokenClass({ ...token, text: "a" }, horizon), visible(token.text)));
  const facts = make(
    "dl", "facts",
    fact("Token", `${index + 1}, id ${token.id}`),
    fact("Step", String(token.step)),
    fact("Model", percent(token.logprob)),
    fact("Head", token.draft_logprob === null ? NOTHING : percent(token.draft_logprob)),
  );
  const parts = [heading, make("p", "story", story(token)), facts];
  if (token.top.length) {
    const rows = token.top.map((other) =>
      [visible(other.text), Math.exp(other.logprob), percent(other.logprob), other.text === token.text]);
    parts.push(table("Likeliest under the model", "token", rows));
  }
  if (token.weights.length) {
    const rows = token.weights.map((weight, a) => [String(a + 1), weight, percent(Math.log(weight))]);
    parts.push(table("Components of the head", "component", rows));
  }
  box.replaceChildren(...parts);
}

/** Fills `box` with nothing: no token is chosen. */
export function inspectNone(box) {
  box.style.minHeight = "";
  box.replaceChildren(make("p", "hint", "No token chosen."));
}

/** The same in a sentence, for those who hear it. */
export function spoken(token) {
  const head = token.draft_logprob === null ? "" : `, head ${percent(token.draft_logprob)}`;
  return `${visible(token.text)}: ${story(token)}, model ${percent(token.logprob)}${head}`;
}
