// The form as settings, kept in this browser between visits. The API key is not kept.

const PLACE = "polydraft.playground";

/** What the form says; numbers as numbers, an empty seed as null. */
export function readSettings(form) {
  const { mode, decoding, prompt, max_tokens, temperature, top_p, seed } = Object.fromEntries(new FormData(form));
  return {
    mode, decoding, prompt,
    maxTokens: Number(max_tokens), temperature: Number(temperature), topP: Number(top_p),
    seed: seed === "" ? null : Number(seed),
  };
}

/** The browser's storage; null where it forbids it. */
function storage() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

/** Puts the kept values back into the form and keeps what changes from now on. */
export function keepSettings(form) {
  const kept = storage()?.getItem(PLACE);
  for (const [name, value] of Object.entries(kept ? JSON.parse(kept) : {})) {
    const field = form.elements.namedItem(name);
    if (field) field.value = value;
  }
  form.addEventListener("input", () => {
    const { key, ...values } = Object.fromEntries(new FormData(form));
    storage()?.setItem(PLACE, JSON.stringify(values));
  });
}

/** A seed for two texts that shall be comparable. */
export const anySeed = () => crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
