// Figures and tokens as words.

export const NOTHING = "\u2013";

/** A number with so many digits behind the point; a dash where there is none. */
export const fixed = (number, digits) => (number === null ? NOTHING : number.toFixed(digits));

/** A probability from its logarithm, as "90.5 %". */
export function percent(logProb) {
  const share = 100 * Math.exp(logProb);
  if (share < 0.01) return "< 0.01 %";
  return `${share.toFixed(share < 1 ? 2 : 1)} %`;
}

const NAMED = { " ": "\u2423", "\n": "\u21b5", "\r": "\u240d", "\t": "\u21e5" };

/** A token's text with its white space and control characters made visible; "" is part of a character. */
export function visible(text) {
  if (text === "") return "(part of a character)";
  return text.replace(/[ \n\r\t]|\p{C}/gu, (char) =>
    NAMED[char] ?? (/\p{Cc}/u.test(char) ? `\\u{${char.codePointAt(0).toString(16)}}` : char));
}

const ENDS = { stop: "The text ended by itself.", length: "It reached the limit of tokens." };

/** The figures of a finished text in a line, from its `usage` and why it ended. */
export function totals(usage, finish) {
  const { polydraft: figures, completion_tokens: tokens } = usage;
  const parts = [
    `${tokens} tokens in ${figures.seconds.toFixed(2)} s on the server (${fixed(figures.tokens_per_second, 1)} tokens/s)`,
    `${figures.steps} steps of ${figures.mean_acceptance_length.toFixed(2)} tokens`,
  ];
  if (figures.drafted_tokens) {
    const rate = (100 * figures.draft_acceptance_rate).toFixed(0);
    parts.push(`${figures.accepted_tokens} of ${figures.drafted_tokens} drafts kept (${rate} %)`);
  }
  if (figures.queued_seconds >= 0.05) parts.push(`${figures.queued_seconds.toFixed(1)} s in the queue before`);
  return `${parts.join(", ")}. ${ENDS[finish] ?? ""}`.trim();
}

/** The part of `text` behind `said` that ends with a whole sentence; "" where none has ended yet. */
export function sentences(text, said) {
  const ends = [...text.slice(said).matchAll(/[.!?\u3002\uff01\uff1f]["'\u201d)\]]*\s|\n/gu)];
  const last = ends.at(-1);
  return last ? text.slice(said, said + last.index + last[0].length) : "";
}
