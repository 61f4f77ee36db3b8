// Server-sent events out of a byte stream, wherever the network cut it.

/** Lines end in LF, CRLF or CR; a character, a line end or an event may lie across two chunks. */
export class EventParser {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];
  #returned = false; // whether the last character so far was a CR, which an LF may still follow

  /** Takes bytes; returns the data of the events that they complete. */
  push(bytes) {
    const text = this.#decoder.decode(bytes, { stream: true });
    if (text === "") return [];
    this.#rest += this.#returned && text.startsWith("\n") ? text.slice(1) : text;
    this.#returned = text.endsWith("\r");
    const events = [];
    let start = 0;
    for (const end of this.#rest.matchAll(/\r\n|\n|\r/g)) {
      const line = this.#rest.slice(start, end.index);
      start = end.index + end[0].length;
      if (line === "" && this.#data.length) events.push(this.#data.splice(0).join("\n"));
      else if (line.startsWith("data:")) this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    }
    this.#rest = this.#rest.slice(start);
    return events;
  }
}

/** The data of each event of a ReadableStream of bytes, as it comes. */
export async function* events(stream) {
  const parser = new EventParser();
  const reader = stream.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield* parser.push(part.value);
}
