/**
 * Makes DOM nodes. Called by every view; the only place where nodes come from.
 *
 * Strings become text nodes: nothing on this page is parsed as HTML, whoever wrote it. `h` is for the page's own
 * controls; `toDom` turns the trees of markdown.js into nodes and lets only the tags and attributes below through.
 */

const MATHML = "http://www.w3.org/1998/Math/MathML";
const SVG = "http://www.w3.org/2000/svg";

const TAGS = new Set(
  (
    "p h1 h2 h3 h4 h5 h6 ul ol li blockquote hr br em strong del code pre a span div table thead tbody tr th td " +
    "input math mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mtable mtr mtd " +
    "mphantom"
  ).split(" "),
);
const ATTRIBUTES = new Set(
  (
    "class href target rel start type checked disabled display mathvariant stretchy fence movablelimits accent " +
    "linethickness width lspace rspace displaystyle"
  ).split(" "),
);

/**
 * An element: h("button.primary.wide", {onclick: f, disabled: true}, "text", child). Properties may be left out; empty
 * ones and empty children are.
 */
export function h(kind, ...rest) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  if (tag === "button") element.type = "button";
  return fill(element, rest);
}

/** The same for SVG, without classes. */
export function svg(tag, ...rest) {
  return fill(document.createElementNS(SVG, tag), rest);
}

function isGiven(value) {
  return value !== undefined && value !== null && value !== false;
}

function fill(element, [first, ...others]) {
  const hasProperties = first?.constructor === Object;
  for (const [name, value] of Object.entries(hasProperties ? first : {})) {
    if (!isGiven(value)) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name !== "value") element.setAttribute(name, value === true ? "" : String(value));
    else element.value = value; // a textarea has no such attribute
  }
  element.append(...(hasProperties ? others : [first, ...others]).flat().filter(isGiven));
  return element;
}

/** Replaces what is in an element; empty children are left out. */
export function setChildren(element, ...children) {
  element.replaceChildren(...children.flat().filter(isGiven));
}

/** A tree, `[tag, attributes, ...children]` or a string, as a node. Raises an Error for what is not on the lists. */
export function toDom(tree, namespace = null) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const [tag, attributes, ...children] = tree;
  if (!TAGS.has(tag)) throw new Error(`no such tag in an answer: ${tag}`);
  const inside = tag === "math" ? MATHML : namespace;
  const element = inside ? document.createElementNS(inside, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (!ATTRIBUTES.has(name)) throw new Error(`no such attribute in an answer: ${name}`);
    element.setAttribute(name, value);
  }
  for (const child of children) element.append(toDom(child, inside));
  return element;
}

// Strokes on a grid of 24, drawn for this page.
const ICONS = {
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h10",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  edit: "M5 19l1-4L16 5l3 3L9 18zM14 7l3 3",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  settings: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  status: "M4 19V12M10 19V5M16 19v-9M21 19H3",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
  close: "M6 6l12 12M18 6L6 18",
  mark: "M6 7.5h12L6 16.5h12",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l5 5",
  quill: "M5 19c1-8 6-13 14-14-1 7-4 11-10 11M5 19l6-7",
  chat: "M5 5h14v11H11l-5 4v-4H5z",
  save: "M12 4v11M7 10l5 5 5-5M5 20h14",
};

/** A drawing, hidden from screen readers: what stands beside it says the same. */
export function drawing(kind, viewBox, ...children) {
  return svg("svg", { class: kind, viewBox, preserveAspectRatio: "none", "aria-hidden": "true" }, ...children);
}

/** A small drawing; its button carries the label. */
export function icon(name) {
  return drawing("icon", "0 0 24 24", svg("path", { d: ICONS[name] }));
}

/** A button with words on it. */
export function button(label, onclick, kind = "") {
  return h(`button.button${kind}`, { onclick }, label);
}

/** A button in the midst of text. */
export function textButton(label, onclick) {
  return h("button.text-button", { onclick }, label);
}

/** A button with a drawing; the label is what screen readers say and what the pointer shows. */
export function iconButton(name, label, onclick, kind = "", properties = {}) {
  return h(`button.icon-button${kind}`, { "aria-label": label, title: label, onclick, ...properties }, icon(name));
}

let fields = 0;

/** A control with its label and a hint. */
export function field(label, hint, control) {
  const id = `field-${++fields}`;
  control.id = id;
  control.setAttribute("aria-describedby", `${id}-hint`);
  return h("div.field", h("label", { for: id }, label), control, h("p.hint", { id: `${id}-hint` }, hint));
}

/** Makes a field as high as its text. */
export function fitHeight(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** Opens a dialog, which leaves the page when it is closed. `close` is a button beside the title, or null. */
export function openDialog(kind, title, close, body) {
  const dialog = h(
    `dialog.dialog${kind}`,
    { "aria-label": title },
    h("header.dialog-head", h("h2", title), close),
    body,
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Whether a key belongs to the input of a Chinese or Japanese word, which Enter and Esc end. */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

/** Puts text on the clipboard; without TLS, where there is no clipboard API, by copying a selection. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const before = document.activeElement;
  const area = h("textarea.visually-hidden", { "aria-hidden": "true", value: text });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before.focus();
  if (!copied) throw new Error("the browser did not let the page copy");
}

/** A button that copies what `read` returns, and says so for a moment. */
export function copyButton(read, label = "Copy") {
  const show = (name, text) => (setChildren(copy, icon(name)), copy.setAttribute("aria-label", text));
  const copy = iconButton("copy", label, async () => {
    await copyText(read());
    show("check", "Copied");
    setTimeout(() => show("copy", label), 1500);
  });
  return copy;
}
