// Talking to the server: request bodies, streams, errors in one line, waiting until it is back.
import { events } from "./sse.js";

const ALTERNATIVES = 5;

/** The server says why there is no text, or no more of it; `status` is null within a stream. */
export class Refusal extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

/** The server cannot be reached, or went away while it was writing. */
export class Silence extends Error {}

/** Path and body of a request for a text: an answer to `messages`, or what follows `prompt`. */
export function request({ model, mode, prompt, messages, maxTokens, temperature, topP, seed, drafted }) {
  const chat = mode === "chat";
  return {
    path: chat ? "v1/chat/completions" : "v1/completions",
    body: {
      model,
      ...(chat ? { messages } : { prompt }),
      max_tokens: maxTokens,
      temperature,
      top_p: topP,
      ...(seed === null ? {} : { seed }),
      stream: true,
      stream_options: { include_usage: true },
      polydraft: { drafted, trace: ALTERNATIVES },
    },
  };
}

/** One line for an answer of the server that is no text. */
export function errorLine(status, words) {
  const line = `The server answered ${status}: ${words.replace(/\s+/g, " ").trim()}`.replace(/[^.!?]$/, "$&.");
  return status === 401 ? `${line} Enter its API key.` : line;
}

const headers = (key) => (key ? { authorization: `Bearer ${key}` } : {});

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Silence("The server is not answering.", { cause: error });
  }
  if (response.ok) return response;
  const answer = await response.text();
  const words = answer.startsWith("{") ? JSON.parse(answer).error?.message : null;
  throw new Refusal(response.status, errorLine(response.status, words ?? response.statusText));
}

/** The served model: its id and, under `polydraft`, what its head is. */
export async function servedModel(key) {
  const response = await reach("v1/models", { headers: headers(key) });
  return (await response.json()).data[0];
}

/** The chunks of a streamed text; `begun` is called once the server has taken the request.
 *  Throws Refusal, Silence, or an AbortError when `signal` stops it. */
export async function* stream({ path, body, key, signal, begun }) {
  const response = await reach(path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers(key) },
    body: JSON.stringify(body),
    signal,
  });
  begun();
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refusal(null, `The server ended the text: ${chunk.error.message}`);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof TypeError && !signal.aborted) throw new Silence("The connection broke.", { cause: error });
    throw error;
  }
  throw new Silence("The connection ended before the text did.");
}

/** Milliseconds to wait before try number 0, 1, 2, ...: half a second, doubled up to eight seconds. */
export const backoff = (attempt) => Math.min(500 * 2 ** attempt, 8000);

/** Resolves once /health answers 200; rejects when `signal` says to give up. */
export async function untilBack(signal) {
  for (let attempt = 0; ; attempt += 1) {
    await new Promise((done) => { setTimeout(done, backoff(attempt)); });
    signal.throwIfAborted();
    const response = await fetch("health", { signal, cache: "no-store" }).catch(() => null);
    if (response?.ok) return;
  }
}
