// Elements, made with text only: nothing that a model wrote is ever read as markup.

export const byId = (id) => document.getElementById(id);

/** An element with classes, a text or children. */
export function make(tag, classes = "", ...content) {
  const element = document.createElement(tag);
  if (classes) element.className = classes;
  element.append(...content);
  return element;
}

/** A bar that fills `share` of its place; numbers beside it say the same, so it is hidden from readers. */
export function bar(share) {
  const fill = make("span", "fill");
  fill.style.width = `${100 * share}%`;
  const place = make("span", "bar", fill);
  place.setAttribute("aria-hidden", "true");
  return place;
}

/** Calls `draw` once in the next frame, however often it is asked for. */
export function eachFrame(draw) {
  let frame = 0;
  return () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
    });
  };
}
