/**
 * The settings and their dialog. Called by sidebar.js; generation.js reads them. Kept in localStorage; an empty field
 * means "as the model says" and is not sent.
 */

import { button, field, h, iconButton, openDialog } from "./dom.js";
import { download, readExport, writeExport } from "./transfer.js";
import { toast } from "./announce.js";

const NAME = "deepzig.settings";

/** Numbers: name in the request, label, hint, and what may be typed. */
const NUMBERS = [
  ["temperature", "Temperature", "0 takes the likeliest token every time", 0, 5, 0.05],
  ["top_p", "Top p", "among the likeliest, with this share together", 0, 1, 0.01],
  ["top_k", "Top k", "among this many; 0 is off", 0, 1000, 1],
  ["min_p", "Min p", "none less likely than this share of the likeliest", 0, 1, 0.01],
  ["repetition_penalty", "Repetition penalty", "above 1: fewer repeats", 0.5, 2, 0.01],
  ["max_tokens", "Longest answer", "in tokens", 1, 1_000_000, 1],
  ["seed", "Seed", "the same seed gives the same text", 0, Number.MAX_SAFE_INTEGER, 1],
];
const KEYS = {
  Enter: "send",
  "Shift Enter": "new line",
  Esc: "stop the answer",
  "Ctrl Shift O": "new conversation",
  "Ctrl K": "search",
  "↑": "edit the last message, from an empty line",
};

/** What the user has set. Unknown and broken values of an older page count as not set. */
export function readSettings() {
  try {
    const value = JSON.parse(localStorage.getItem(NAME) ?? "{}");
    return value && typeof value === "object" && !Array.isArray(value) ? value : {};
  } catch {
    return {};
  }
}

/** Changes some settings and keeps them. */
function changeSettings(changes) {
  const settings = { ...readSettings(), ...changes };
  for (const [name, value] of Object.entries(settings)) if (value === "") delete settings[name];
  try {
    localStorage.setItem(NAME, JSON.stringify(settings));
  } catch {
    toast("The browser does not keep settings for this page.");
  }
  document.documentElement.dataset.theme = settings.theme ?? ""; // none: the system's
}

/** The fields of a request that the user has set. */
export function samplingFields() {
  const settings = readSettings();
  const fields = {};
  for (const [name] of NUMBERS) if (typeof settings[name] === "number") fields[name] = settings[name];
  const stops = (typeof settings.stop === "string" ? settings.stop : "").split("\n").filter(Boolean).slice(0, 16);
  if (stops.length) fields.stop = stops;
  return fields;
}

/** Opens the dialog. `app` gives the model and the store. */
export function openSettings(app) {
  const settings = readSettings();
  const close = () => dialog.close();
  const themes = { "": "As the system", light: "Light", dark: "Dark" };
  const body = h(
    "div.dialog-body",
    app.model?.hasChatTemplate && chatSettings(settings, app.model),
    samplingSettings(settings),
    group("Page", field("Colours", "of this browser", choice("theme", settings, themes))),
    dataSettings(app, close),
    shortcuts(),
  );
  const dialog = openDialog("", "Settings", iconButton("close", "Close", close), body);
  dialog.addEventListener("click", (event) => event.target === dialog && close());
}

function chatSettings(settings, { hasThinking }) {
  const thinking = { "": "Model's choice", on: "On", off: "Off" };
  return group(
    "Chat",
    field("System prompt", "what the model is told before every conversation", textArea("system", settings)),
    hasThinking && field("Thinking", "before it answers", choice("thinking", settings, thinking)),
    field("Form of answers", "JSON: one object", choice("format", settings, { "": "Text", json: "JSON" })),
  );
}

function samplingSettings(settings) {
  const numbers = NUMBERS.map((number) => numberField(number, settings));
  return group(
    "Sampling",
    h("p.hint", "An empty field is left to the model."),
    h("div.number-grid", numbers),
    field("Stop at", "one text a line; the answer ends before it", textArea("stop", settings)),
  );
}

function numberField([name, label, hint, min, max, step], settings) {
  const onchange = ({ target }) => {
    if (target.reportValidity()) changeSettings({ [name]: target.value && Number(target.value) });
  };
  const properties = { type: "number", inputmode: "decimal", placeholder: "model's", value: settings[name] };
  return field(label, hint, h("input", { ...properties, min, max, step, onchange }));
}

function dataSettings(app, close) {
  const onchange = async () => {
    const [file] = picker.files;
    if (!file) return;
    try {
      const conversations = readExport(await file.text());
      conversations.forEach((conversation) => app.store.put(conversation));
      await app.store.flush();
      app.showList();
      toast(`Imported ${conversations.length} conversation${conversations.length === 1 ? "" : "s"}.`);
      close();
    } catch (error) {
      toast(error.message);
    }
    picker.value = "";
  };
  const accept = "application/json,.json";
  const picker = h("input", { type: "file", accept, hidden: true, "aria-label": "File to import", onchange });
  const remove = async () => {
    if (!confirm("Delete every conversation kept in this browser? This cannot be undone.")) return;
    app.stopAll();
    await app.store.clear();
    app.openNew();
    close();
  };
  const kept = "They are kept in this browser and nowhere else.";
  const notKept = "This browser does not let the page keep them: they end with the tab.";
  return group(
    "Conversations",
    h("p.hint", app.store.isPersistent ? kept : notKept),
    h(
      "div.button-row",
      button("Export all", () => download("deepzig-conversations.json", writeExport(app.store.list()))),
      button("Import…", () => picker.click()),
      button("Delete all", remove, ".danger"),
      picker,
    ),
  );
}

function shortcuts() {
  const kbd = (key) => h("kbd", key);
  const row = ([keys, what]) => [h("dt", keys.split(" ").map(kbd)), h("dd", what)];
  return group("Keys", h("dl.keys", Object.entries(KEYS).flatMap(row)));
}

function group(title, ...children) {
  return h("section.settings-group", h("h3", title), ...children);
}

/** Keeps what is typed or chosen. */
function keeping(name) {
  return ({ target }) => changeSettings({ [name]: target.value });
}

function textArea(name, settings) {
  return h("textarea", { rows: 3, value: settings[name], onchange: keeping(name) });
}

function choice(name, settings, options) {
  const option = ([value, text]) => h("option", { value, selected: value === (settings[name] ?? "") }, text);
  return h("select", { onchange: keeping(name) }, Object.entries(options).map(option));
}
