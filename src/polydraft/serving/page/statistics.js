// What is counted while a text comes in; the names and formulas are those of the server's statistics.

/** Counts over the tokens of one text so far. */
export class Tally {
  tokens = 0;
  steps = 0;
  kept = []; // entry s: tokens drafted (or copied) at position s
  kinds = {}; // "drafted" counts by position: "drafted-1", "drafted-2", ...
  seconds = 0; // from the request to the last token

  /** Tokens that arrived together, `seconds` after the request. */
  add(tokens, seconds) {
    for (const token of tokens) {
      this.tokens += 1;
      this.steps = Math.max(this.steps, token.step);
      if (token.origin > 0) this.kept[token.origin] = (this.kept[token.origin] ?? 0) + 1;
      const kind = kindOf(token);
      this.kinds[kind] = (this.kinds[kind] ?? 0) + 1;
    }
    this.seconds = seconds;
  }

  /** Tokens per second since the request, the reading of the prompt included; null before the first. */
  get speed() {
    return this.tokens ? this.tokens / this.seconds : null;
  }

  /** 1 + kept drafts / steps; null before the first step. */
  get tokensPerStep() {
    const accepted = this.kept.reduce((sum, count) => sum + (count ?? 0), 0);
    return this.steps ? 1 + accepted / this.steps : null;
  }

  /** Entry s - 1: the share of the steps that kept the draft at position s, for `horizon` positions or more. */
  acceptance(horizon = 0) {
    const length = Math.max(horizon, this.kept.length - 1);
    return Array.from({ length }, (_, s) => (this.steps ? (this.kept[s + 1] ?? 0) / this.steps : 0));
  }
}

/** What a token is counted as. */
export const kindOf = (token) => (token.kind === "drafted" ? `drafted-${token.origin}` : token.kind);

/** Index of the first token in which two texts differ; -1 where they are equal. */
export function firstDifference(one, other) {
  const length = Math.max(one.length, other.length);
  for (let i = 0; i < length; i += 1) if (one[i]?.id !== other[i]?.id) return i;
  return -1;
}
