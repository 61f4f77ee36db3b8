// The playground: reads the form, runs texts in panes, and says what happens.
import { drawAcceptance, drawLegend } from "./charts.js";
import { Chat } from "./chat.js";
import { Refusal, Silence, request, servedModel, untilBack } from "./client.js";
import { byId, eachFrame } from "./dom.js";
import { inspect, inspectNone, spoken } from "./inspector.js";
import { Pane } from "./pane.js";
import { Race } from "./race.js";
import { anySeed, keepSettings, readSettings } from "./settings.js";
import { Speech } from "./speech.js";

const form = byId("request");
const speech = new Speech(byId("speech"));
const chat = new Chat(byId("chat"), byId("new-chat"));
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
    else if (running) speech.follow(pane.said, pane.finish !== null);
  },
});
const panes = { plain: makePane("plain"), drafted: makePane("drafted") };
const race = new Race(byId("race"), panes.plain, panes.drafted);
const decoding = () => readSettings(form).decoding;
const shown = () => (decoding() === "race" ? [panes.plain, panes.drafted] : [panes[decoding()]]);

const closeToken = () => byId("inspector").classList.remove("open");

function showPanes() {
  for (const id of ["chat", "new-chat"]) byId(id).hidden = readSettings(form).mode !== "chat";
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
  const chatting = settings.mode === "chat";
  let taken = false;
  const messages = chat.messages(settings.prompt);
  /** Makes room for the texts, once the server has taken the request for the first. */
  const begin = () => {
    taken = true;
    race.rest();
    raced = racing;
    showPanes();
    inspectNone(byId("token"));
    closeToken();
    for (const pane of list) pane.clear(horizon());
    if (chatting) chat.begin(settings.prompt);
  };
  for (const pane of list) {
    speech.begin();
    if (racing) notify(`${pane.name === "plain" ? "First plain" : "Now drafted"} \u2026`);
    const drafted = pane.name === "drafted";
    const asked = request({ ...settings, messages, seed, model: model.id, drafted });
    const begun = pane === list[0] ? begin : () => {};
    try {
      await pane.run({ ...asked, key: key(), signal, begun });
    } finally {
      if (chatting && taken && pane.said) chat.said(pane.said);
    }
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("close").addEventListener("click", closeToken);
form.addEventListener("change", (event) => {
  if (!["decoding", "mode"].includes(event.target.name)) return;
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
