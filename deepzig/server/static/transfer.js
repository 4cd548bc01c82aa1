/**
 * Conversations to a file and back. `readExport` trusts nothing in the file: it builds new objects from checked fields.
 *
 * Called by settings.js and sidebar.js; knows nothing of storage.
 */

import { ROOT, newId } from "./conversations.js";

const FORMAT = "deepzig-conversations";
const VERSION = 1;
const MAX_TEXT = 4_000_000;
const STATES = new Set(["done", "stopped", "interrupted", "failed"]);

/** The content of an export file. */
export function writeExport(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

/** The conversations of an export file, under new ids: none is overwritten. Raises an Error that says what is wrong. */
export function readExport(text) {
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    throw new Error("The file is no JSON.");
  }
  if (content?.format !== FORMAT) throw new Error("The file was not exported by deepzig.");
  if (content.version !== VERSION)
    throw new Error(`The file has version ${content.version}; this page reads ${VERSION}.`);
  if (!Array.isArray(content.conversations)) throw new Error("The file has no list of conversations.");
  return content.conversations.map(readConversation);
}

function readConversation(given) {
  const ids = new Map([[ROOT, ROOT]]); // old -> new; a parent comes before its children, so there are no circles
  const nodes = {};
  for (const [id, node] of Object.entries(object(given.nodes, "nodes"))) {
    if (!ids.has(node?.parent)) throw new Error("The file has a message whose predecessor is missing.");
    if (ids.has(id)) throw new Error("The file has a message twice.");
    const fresh = readNode(node, ids.get(node.parent));
    ids.set(id, fresh.id);
    nodes[fresh.id] = fresh;
  }
  const chosen = {};
  for (const [parent, child] of Object.entries(object(given.chosen, "chosen"))) {
    const [above, below] = [ids.get(parent), ids.get(child)];
    if (!above || !below || nodes[below]?.parent !== above)
      throw new Error("The file shows a message that is not there.");
    chosen[above] = below;
  }
  return {
    id: newId("c"),
    mode: given.mode === "story" ? "story" : "chat",
    model: string(given.model ?? "", "model"),
    title: string(given.title ?? "", "title").slice(0, 200),
    created: time(given.created),
    updated: time(given.updated),
    nodes,
    chosen,
  };
}

function readNode(node, parent) {
  if (node.role !== "user" && node.role !== "assistant") throw new Error("The file has a message of an unknown role.");
  const fresh = {
    id: newId("n"),
    parent,
    role: node.role,
    content: string(node.content, "content"),
    reasoning: string(node.reasoning ?? "", "reasoning"),
    state: STATES.has(node.state) ? node.state : "interrupted",
    created: time(node.created),
  };
  if (node.finish === "stop" || node.finish === "length") fresh.finish = node.finish;
  if (fresh.state === "failed") fresh.error = { message: string(node.error?.message, "error") };
  if (node.stats) fresh.stats = readStats(object(node.stats, "stats"));
  return fresh;
}

function readStats(stats) {
  return Object.fromEntries(Object.entries(stats).filter(([, value]) => Number.isFinite(value)));
}

function object(value, name) {
  if (value === null || typeof value !== "object" || Array.isArray(value))
    throw new Error(`The file's ${name} are missing.`);
  return value;
}

function string(value, name) {
  if (typeof value !== "string" || value.length > MAX_TEXT)
    throw new Error(`The file has no text where its ${name} should be.`);
  return value;
}

function time(value) {
  return Number.isFinite(value) ? value : Date.now();
}

/** Lets the browser save a text as a file. */
export function download(name, text, type = "application/json") {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
