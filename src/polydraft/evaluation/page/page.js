// Sorting, searching, copying and the current section. The page is whole without it.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

  // Tables: a click on a heading sorts, by the first number of each cell where the column holds numbers.
  const text = (row, column) => row.cells[column].textContent.trim();
  const number = (words) => {
    const found = words.replace(/(\d),(?=\d{3})/g, "$1").replace("\u2212", "-").match(/[+-]?\d*\.?\d+/);
    return found ? Number(found[0]) : null;
  };
  const sorted = (rows, column, numeric, sign) => {
    const keyed = rows.map((row) => {
      const words = text(row, column);
      return { row, key: numeric ? number(words) : /^[-\u2013]?$/.test(words) ? null : words };
    });
    const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    keyed.sort((a, b) =>
      a.key === null || b.key === null ? (a.key === null) - (b.key === null) : sign * compare(a.key, b.key));
    return keyed.map((entry) => entry.row);
  };
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  for (const table of all("table")) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 2) continue;
    const written = [...body.rows];
    const headings = all("thead th", table);
    headings.forEach((heading, column) => {
      if (!heading.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const order = next[heading.getAttribute("aria-sort") ?? "none"];
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        if (order !== "none") heading.setAttribute("aria-sort", order);
        const sign = order === "descending" ? -1 : 1;
        const numeric = heading.classList.contains("number");
        body.append(...(order === "none" ? written : sorted(written, column, numeric, sign)));
      });
    });
  }

  // What each section says, for the search, before the buttons below add words of their own.
  const own = (section) =>
    [...section.children].filter((part) => part.tagName !== "SECTION").map((part) => part.textContent).join("\n");
  const sections = all("main section").map((node) => ({
    node,
    words: own(node).toLowerCase(),
    title: node.querySelector("h2, h3, h4, h5, h6").textContent.toLowerCase(),
    entry: document.querySelector(`nav a[href="#${node.getAttribute("aria-labelledby")}"]`)?.parentElement,
  }));

  // Commands: a button that copies them; where the browser forbids it they are left selected.
  for (const block of all("pre.command")) {
    const box = make("div", "");
    const button = make("button", "Copy");
    box.className = "copyable";
    button.type = "button";
    block.replaceWith(box);
    box.append(block, button);
    button.addEventListener("click", async () => {
      const words = block.textContent.trimEnd();
      getSelection().selectAllChildren(block);
      const copied = await (navigator.clipboard?.writeText(words) ?? Promise.reject()).then(() => true, () => false);
      button.textContent = copied ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  // Search: a section stays where its own words, or a heading above it, hold all words sought.
  const input = document.getElementById("page-words");
  const found = document.getElementById("page-found");
  const highlight = (wanted) => {
    if (!CSS.highlights) return;
    const ranges = [];
    const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    while (wanted.length && walker.nextNode()) {
      if (walker.currentNode.parentElement.matches(".copyable > button")) continue;
      const words = walker.currentNode.data.toLowerCase();
      for (const word of wanted) {
        for (let at = words.indexOf(word); at >= 0; at = words.indexOf(word, at + word.length)) {
          const range = new Range();
          range.setStart(walker.currentNode, at);
          range.setEnd(walker.currentNode, at + word.length);
          ranges.push(range);
        }
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  };
  const search = () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (words) => wanted.every((word) => words.includes(word));
    const shown = new Set();
    for (const { node, words, title } of sections) {
      const above = sections.some((other) => other.node !== node && other.node.contains(node) && has(other.title));
      if (has(words) || has(title) || above) {
        for (let part = node; part.tagName === "SECTION"; part = part.parentElement) shown.add(part);
      }
    }
    for (const { node, entry } of sections) {
      node.hidden = !shown.has(node);
      if (entry) entry.hidden = node.hidden;
    }
    for (const fold of all("nav li details")) fold.open = wanted.length > 0;
    found.textContent = wanted.length ? `${shown.size} of ${sections.length} sections` : "";
    highlight(wanted);
  };
  const clear = () => { input.value = ""; search(); };
  document.getElementById("page-search").hidden = false;
  document.getElementById("page-search").addEventListener("submit", (event) => event.preventDefault());
  input.addEventListener("input", search);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== input && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      input.focus();
    } else if (event.key === "Escape" && event.target === input) clear();
  });
  addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target?.closest("[hidden]")) return;
    clear();
    target.scrollIntoView();
  });

  // Contents: folded on small screens, and the section in view marked.
  const narrow = matchMedia("(max-width: 63.99rem)");
  const contents = document.getElementById("page-contents");
  const fit = () => { contents.open = !narrow.matches; };
  narrow.addEventListener("change", fit);
  fit();
  contents.addEventListener("click", (event) => { if (event.target.closest("a") && narrow.matches) fit(); });
  const headings = all("main h2[id], main h3[id]").filter((heading) =>
    document.querySelector(`nav a[href="#${heading.id}"]`));
  const mark = () => {
    const passed = headings.filter((heading) => heading.offsetParent && heading.getBoundingClientRect().top < 120);
    const current = passed.at(-1)?.id;
    for (const link of all("nav a")) {
      if (link.getAttribute("href") === `#${current}`) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; mark(); });
  }, { passive: true });
  mark();
})();
