/**
 * Conversations to a file and back. `readExport` trusts nothing in the file: it builds new objects from checked fields.
 *
 * Called by settings.js and sidebar.js; knows nothing of storage.
 */

import { ROOT, newId } from "./conversations.js";
import { h } from "./dom.js";

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
    check(false, "is no JSON");
  }
  check(content?.format === FORMAT, "was not exported by deepzig");
  check(content.version === VERSION, `has version ${content.version}; this page reads ${VERSION}`);
  check(Array.isArray(content.conversations), "has no list of conversations");
  return content.conversations.map(readConversation);
}

function check(isRight, problem) {
  if (!isRight) throw new Error(`The file ${problem}.`);
}

function readConversation(given) {
  const ids = new Map([[ROOT, ROOT]]); // old -> new; a parent comes before its children, so there are no circles
  const nodes = {};
  for (const [id, node] of Object.entries(object(given?.nodes, "nodes"))) {
    check(ids.has(node?.parent), "has a message whose predecessor is missing");
    check(!ids.has(id), "has a message twice");
    const fresh = readNode(node, ids.get(node.parent));
    ids.set(id, fresh.id);
    nodes[fresh.id] = fresh;
  }
  const chosen = {};
  for (const [parent, child] of Object.entries(object(given.chosen, "chosen"))) {
    const [above, below] = [ids.get(parent), ids.get(child)];
    check(above && nodes[below]?.parent === above, "shows a message that is not there");
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
  check(["user", "assistant"].includes(node.role), "has a message of an unknown role");
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
  const stats = Object.entries(object(node.stats ?? {}, "stats"));
  return { ...fresh, stats: Object.fromEntries(stats.filter(([, value]) => Number.isFinite(value))) };
}

function object(value, name) {
  check(value && typeof value === "object" && !Array.isArray(value), `has no ${name}`);
  return value;
}

function string(value, name) {
  check(typeof value === "string" && value.length <= MAX_TEXT, `has no text where its ${name} should be`);
  return value;
}

function time(value) {
  return Number.isFinite(value) ? value : Date.now();
}

/** Lets the browser save a text as a file. */
export function download(name, text, type = "application/json") {
  const href = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}
