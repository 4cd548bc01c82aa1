/**
 * The settings and their dialog: how to sample, how the page looks, what is kept. Called by sidebar.js; generation.js
 * reads `samplingFields`. Kept in localStorage; an empty field means "as the model says" and is not sent.
 */

import { button, h, iconButton } from "./dom.js";
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
  for (const [name, value] of Object.entries(settings)) if (value === null || value === "") delete settings[name];
  try {
    localStorage.setItem(NAME, JSON.stringify(settings));
  } catch {
    toast("The browser does not keep settings for this page.");
  }
  applyTheme(settings.theme);
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

/** "light", "dark", or undefined: the system's. */
function applyTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

/** Opens the dialog. `app` gives the model and the store. */
export function openSettings(app) {
  const settings = readSettings();
  const dialog = h("dialog.dialog", { "aria-labelledby": "settings-title" });
  const close = () => dialog.close();
  dialog.append(
    h("header.dialog-head", h("h2", { id: "settings-title" }, "Settings"), iconButton("close", "Close", close)),
    h(
      "div.dialog-body",
      app.model?.hasChatTemplate ? chatSettings(settings, app.model) : null,
      samplingSettings(settings),
      group(
        "Page",
        field(
          "Colours",
          "of this browser",
          choice("theme", settings, { "": "As the system", light: "Light", dark: "Dark" }),
        ),
      ),
      dataSettings(app, dialog),
      shortcuts(),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  document.body.append(dialog);
  dialog.showModal();
}

function chatSettings(settings, { hasThinking }) {
  const system = field(
    "System prompt",
    "what the model is told before every conversation",
    textArea("system", settings),
  );
  const thinking = { "": "Model's choice", on: "On", off: "Off" };
  return group(
    "Chat",
    system,
    hasThinking && field("Thinking", "before it answers", choice("thinking", settings, thinking)),
    field("Form of answers", "JSON: one object", choice("format", settings, { "": "Text", json: "JSON" })),
  );
}

function samplingSettings(settings) {
  return group(
    "Sampling",
    h("p.hint", "An empty field is left to the model."),
    h(
      "div.number-grid",
      NUMBERS.map((number) => numberField(number, settings)),
    ),
    field("Stop at", "one text a line; the answer ends before it", textArea("stop", settings)),
  );
}

function numberField([name, label, hint, min, max, step], settings) {
  const onchange = ({ target }) => {
    if (target.reportValidity()) changeSettings({ [name]: target.value === "" ? null : Number(target.value) });
  };
  const properties = { type: "number", inputmode: "decimal", placeholder: "model's", value: settings[name] };
  return field(label, hint, h("input", { ...properties, min, max, step, onchange }));
}

function dataSettings(app, dialog) {
  const picker = h("input", {
    type: "file",
    accept: "application/json,.json",
    hidden: true,
    "aria-label": "File to import",
  });
  picker.addEventListener("change", async () => {
    const [file] = picker.files;
    if (!file) return;
    try {
      const conversations = readExport(await file.text());
      conversations.forEach((conversation) => app.store.put(conversation));
      await app.store.flush();
      app.showList();
      toast(`Imported ${count(conversations.length)}.`);
      dialog.close();
    } catch (error) {
      toast(error.message);
    }
    picker.value = "";
  });
  const remove = async () => {
    if (!confirm("Delete every conversation kept in this browser? This cannot be undone.")) return;
    app.stopAll();
    await app.store.clear();
    app.open(null);
    dialog.close();
  };
  return group(
    "Conversations",
    h(
      "p.hint",
      app.store.isPersistent
        ? "They are kept in this browser and nowhere else."
        : "This browser does not let the page keep them: they end with the tab.",
    ),
    h(
      "div.button-row",
      button("Export all", () => download("deepzig-conversations.json", writeExport(app.store.list()))),
      button("Import…", () => picker.click()),
      button("Delete all", remove, ".danger"),
      picker,
    ),
  );
}

function count(number) {
  return number === 1 ? "1 conversation" : `${number} conversations`;
}

function shortcuts() {
  const row = ([keys, what]) => [
    h(
      "dt",
      keys.split(" ").map((key) => h("kbd", key)),
    ),
    h("dd", what),
  ];
  return group("Keys", h("dl.keys", Object.entries(KEYS).flatMap(row)));
}

function group(title, ...children) {
  return h("section.settings-group", h("h3", title), ...children);
}

let fields = 0;

/** A control with its label and a hint. */
function field(label, hint, control) {
  control.id = `field-${++fields}`;
  control.setAttribute("aria-describedby", `${control.id}-hint`);
  return h(
    "div.field",
    h("label", { for: control.id }, label),
    control,
    h("p.hint", { id: `${control.id}-hint` }, hint),
  );
}

function textArea(name, settings) {
  const area = h("textarea", { rows: 3, onchange: ({ target }) => changeSettings({ [name]: target.value }) });
  area.value = settings[name] ?? "";
  return area;
}

function choice(name, settings, options) {
  const option = ([value, text]) => h("option", { value, selected: value === (settings[name] ?? "") }, text);
  const onchange = ({ target }) => changeSettings({ [name]: target.value });
  return h("select", { onchange }, Object.entries(options).map(option));
}
