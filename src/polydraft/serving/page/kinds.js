// How a token came: its classes, its words, and the entries of the legend.

export const SHADES = 8;

/** The shade, 1..SHADES, of a draft at position s: from the lightest at 1 to the darkest at the horizon. */
export function shade(position, horizon) {
  const share = horizon > 1 ? (Math.min(position, horizon) - 1) / (horizon - 1) : 0;
  return 1 + Math.round(share * (SHADES - 1));
}

/** The classes of a token's span. */
export function tokenClass(token, horizon) {
  const classes = ["token", token.kind];
  if (token.kind === "drafted") classes.push(`shade-${shade(token.origin, horizon)}`);
  if (token.text === "") classes.push("empty");
  if (/[\r\n]/.test(token.text)) classes.push("newline");
  return classes.join(" ");
}

const WORDS = {
  first: "first token, from the prompt",
  correction: "correction: a draft stood here and was refused",
  bonus: "bonus: all drafts before it were kept",
  plain: "plain: nothing was drafted here",
};

/** How a token came, in words. */
export function story(token) {
  if (token.kind === "drafted") return `drafted at position ${token.origin}`;
  if (token.kind === "copied") return `copied from the text before, at position ${token.origin}`;
  return WORDS[token.kind];
}

/** What the legend lists: the key of the tally, the classes of the sample and the words. */
export function legendEntries(horizon) {
  const positions = Array.from({ length: horizon }, (_, s) => s + 1);
  const sample = (kind, origin = 0) => tokenClass({ kind, origin, text: "a" }, horizon);
  return [
    ...positions.map((s) => ({
      key: `drafted-${s}`, classes: sample("drafted", s), words: `drafted at position ${s}`,
    })),
    { key: "copied", classes: sample("copied"), words: "copied" },
    { key: "correction", classes: sample("correction"), words: "correction" },
    { key: "bonus", classes: sample("bonus"), words: "bonus" },
    { key: "first", classes: sample("first"), words: "first" },
    { key: "plain", classes: sample("plain"), words: "plain" },
  ];
}
