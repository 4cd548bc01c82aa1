/**
 * A conversation as data: a tree of messages, of which one path is shown. Knows nothing of the page or of storage.
 *
 * Asking again or editing adds a sibling; `chosen` says which child of each message is shown. A story is the same tree:
 * passages by the reader ("user") and by the model ("assistant"), read without gaps.
 */

export const ROOT = "root";

/** `mode` is "chat" or "story". */
export function newConversation(mode, model) {
  const now = Date.now();
  return { id: newId("c"), mode, model, title: "", created: now, updated: now, nodes: {}, chosen: {} };
}

/** A new name; a letter first, so that objects keep the order in which nodes came. */
export function newId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return prefix + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Adds a message below `parent` and shows it. `state`: done, streaming, stopped, interrupted or failed. */
export function addNode(conversation, parent, role, content, state = "done") {
  const node = { id: newId("n"), parent, role, content, reasoning: "", state, created: Date.now() };
  conversation.nodes[node.id] = node;
  conversation.chosen[parent] = node.id;
  conversation.updated = node.created;
  if (!conversation.title && role === "user") conversation.title = titleOf(content);
  return node;
}

/** Whether nothing has been written yet. */
export function isEmpty(conversation) {
  return !Object.keys(conversation.nodes).length;
}

/** The messages that are shown, first one first. */
export function shownPath(conversation) {
  const path = [];
  for (let id = conversation.chosen[ROOT]; id; id = conversation.chosen[id]) path.push(conversation.nodes[id]);
  return path;
}

/** The messages from the first one to `node`. */
export function pathTo(conversation, node) {
  const path = [];
  for (let at = node; at; at = conversation.nodes[at.parent]) path.unshift(at);
  return path;
}

/** The versions of all messages, in the order in which they were made: a map from the id of their parent. */
export function allVersions(conversation) {
  return Map.groupBy(Object.values(conversation.nodes), (node) => node.parent);
}

/** The last message that is shown, if there is one. */
export function lastNode(conversation) {
  return shownPath(conversation).at(-1);
}

/** What /v1/chat/completions is sent: thinking is left out, as DeepSeek asks for. */
export function asMessages(path, systemPrompt) {
  const messages = path.map(({ role, content }) => ({ role, content }));
  return systemPrompt ? [{ role: "system", content: systemPrompt }, ...messages] : messages;
}

/** The text of a story. */
export function asText(path) {
  return path.map((node) => node.content).join("");
}

/** The conversation as Markdown, to be read elsewhere. */
export function asMarkdown(conversation) {
  const path = shownPath(conversation);
  if (conversation.mode === "story") return `# ${conversation.title}\n\n${asText(path)}\n`;
  const parts = path.map((node) => `**${node.role === "user" ? "You" : "Answer"}**\n\n${node.content}\n`);
  return `# ${conversation.title}\n\n${parts.join("\n")}`;
}

/** The beginning of a text as a title, cut between words. */
export function titleOf(text) {
  const line = text.trim().replace(/\s+/g, " ");
  if (line.length <= 48) return line;
  const cut = line.slice(0, 48).replace(/[\ud800-\udbff]$/, ""); // half of a character
  return `${cut.replace(/^(.{21,}) .*/, "$1")}…`;
}

/**
 * Adds what another tab has written into the same conversation, and returns ours. Messages only grow: the longer text is
 * the newer one. Ours stay the same objects.
 */
export function join(ours, theirs) {
  const isGrowing = ({ state }) => state === "streaming";
  const sizeOf = ({ content, reasoning }) => content.length + reasoning.length;
  for (const [id, given] of Object.entries(theirs.nodes)) {
    if (!ours.nodes[id] && theirs.chosen[given.parent] === id) ours.chosen[given.parent] ??= id;
    const node = (ours.nodes[id] ??= given);
    if (sizeOf(given) > sizeOf(node) || (isGrowing(node) && !isGrowing(given))) Object.assign(node, given);
  }
  return ours;
}

/** The same, and shows what the other tab shows; the path stays while an answer is being written. */
export function adopt(ours, theirs) {
  const isBusy = Object.values(ours.nodes).some(({ state }) => state === "streaming");
  join(ours, theirs);
  if (!isBusy) ours.chosen = theirs.chosen;
  [ours.title, ours.updated] = [theirs.title, theirs.updated];
}

/** Says of messages that were being written when the page was closed that nothing more will come. */
export function markInterrupted(conversation) {
  for (const node of Object.values(conversation.nodes)) if (node.state === "streaming") node.state = "interrupted";
}
