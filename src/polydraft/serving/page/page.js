// The playground: reads the form, runs texts in panes, and says what happens.
import { drawAcceptance, drawLegend } from "./charts.js";
import { Refusal, Silence, request, servedModel, untilBack } from "./client.js";
import { byId, eachFrame } from "./dom.js";
import { inspect, spoken } from "./inspector.js";
import { Pane } from "./pane.js";
import { Race } from "./race.js";
import { anySeed, keepSettings, readSettings } from "./settings.js";
import { Speech } from "./speech.js";

const form = byId("request");
const speech = new Speech(byId("speech"));
let model = null; // as /v1/models describes it; null until it has answered
let running = null; // the AbortController of what is under way
let raced = false; // whether the panes hold a race
let waiting = new AbortController(); // of the wait for a server that is away

const horizon = () => model?.polydraft?.head?.horizon ?? 1;
const key = () => byId("key").value;

// Panes and what is drawn beside them

const drawAside = eachFrame(() => {
  const pane = shown().at(-1);
  drawLegend(byId("legend"), pane.tally, horizon());
  drawAcceptance(byId("acceptance"), pane.tally.acceptance(horizon()));
});

/** Shows a token's figures; the place they take never shrinks, so that nothing below moves about. */
function showToken(token, index) {
  const box = byId("token");
  inspect(box, token, index, horizon());
  byId("inspector").classList.add("open");
  box.style.minHeight = `${box.offsetHeight}px`;
}

const makePane = (name) => new Pane(name, {
  onPick: (token, index, walked) => {
    for (const other of Object.values(panes)) if (other.name !== name) other.transcript.leave();
    showToken(token, index);
    if (walked) speech.say(spoken(token));
  },
  onDraw: (pane) => {
    drawAside();
    if (raced) race.draw();
    else if (running) speech.follow(pane.transcript.tokens.map(({ text }) => text).join(""), pane.finish !== null);
  },
});
const panes = { plain: makePane("plain"), drafted: makePane("drafted") };
const race = new Race(byId("race"), panes.plain, panes.drafted);
const decoding = () => readSettings(form).decoding;
const shown = () => (decoding() === "race" ? [panes.plain, panes.drafted] : [panes[decoding()]]);

function showPanes() {
  byId("panes").replaceChildren(...shown().map((pane) => pane.element));
  byId("race").hidden = !raced || decoding() !== "race";
  drawAside();
}

// Notices

function notify(words, isError = false) {
  byId("status").textContent = isError ? "" : words;
  byId("error").textContent = isError ? words : "";
}

function report(error) {
  if (error.name === "AbortError") return notify("Stopped.");
  if (error instanceof Silence) return waitForServer();
  if (!(error instanceof Refusal)) throw error;
  notify(error.message, true);
  if (error.status === 401) {
    byId("key-field").hidden = false;
    byId("key").focus();
  }
  return undefined;
}

/** Asks again and again until the server answers or a new text is asked for. */
function waitForServer() {
  notify("The server is not answering, trying again \u2026", true);
  waiting = new AbortController();
  const { signal } = waiting;
  untilBack(signal).then(meet).then(() => notify("The server is back.")).catch((error) => {
    if (!signal.aborted) report(error);
  });
}

/** Asks the server what it serves. */
async function meet() {
  model = await servedModel(key());
  const { joint, rank, horizon: ahead } = model.polydraft.head;
  const parts = rank > 1 ? `${joint}, ${rank} components` : joint;
  byId("served").textContent = `${model.id}, with a head (${parts}) that drafts ${ahead} tokens`;
  drawAside();
}

// Generating

function setRunning(controller) {
  running = controller;
  byId("stop").disabled = !controller;
  byId("generate").disabled = Boolean(controller);
}

async function generate() {
  if (running) return;
  waiting.abort();
  const controller = new AbortController();
  setRunning(controller);
  notify("");
  try {
    if (!model) await meet();
    await runAll(readSettings(form), controller.signal);
    notify("Done.");
  } catch (error) {
    report(error);
  } finally {
    setRunning(null);
  }
}

async function runAll(settings, signal) {
  const list = shown();
  const racing = list.length > 1;
  const seed = settings.seed ?? (racing && settings.temperature > 0 ? anySeed() : null);
  race.rest();
  raced = racing;
  showPanes();
  for (const pane of list) pane.clear(horizon());
  for (const pane of list) {
    speech.begin();
    if (racing) notify(`${pane.name === "plain" ? "First plain" : "Now drafted"} \u2026`);
    const drafted = pane.name === "drafted";
    await pane.run({ ...request({ ...settings, seed, model: model.id, drafted }), key: key(), signal });
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("close").addEventListener("click", () => byId("inspector").classList.remove("open"));
form.addEventListener("change", (event) => {
  if (event.target.name !== "decoding") return;
  running?.abort();
  showPanes();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  if (event.key === "Escape") running?.abort();
});

keepSettings(form);
showPanes();
meet().catch(report);
