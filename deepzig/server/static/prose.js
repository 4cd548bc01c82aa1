/**
 * Shows Markdown in an element and keeps it up to date while text streams in. Called by chat.js; calls markdown.js.
 *
 * Blocks whose source is unchanged keep their nodes: a growing answer costs one block a frame, and a selection stays.
 */

import { copyButton, toDom } from "./dom.js";
import { parseMarkdown } from "./markdown.js";

const sources = new WeakMap(); // node of a block -> its source

/** Makes `element` show `text`. */
export function showMarkdown(element, text) {
  const blocks = parseMarkdown(text);
  blocks.forEach((block, index) => {
    const old = element.childNodes[index];
    if (old && sources.get(old) === block.source) return;
    const fresh = blockNode(block);
    if (old) old.replaceWith(fresh);
    else element.append(fresh);
  });
  while (element.childNodes.length > blocks.length) element.lastChild.remove();
}

function blockNode(block) {
  const node = toDom(block.tree());
  sources.set(node, block.source);
  if (node.matches("ul, ol, blockquote")) node.dir = "auto"; // their marks stand where the text begins
  const codes = [...node.querySelectorAll(".code-block"), ...(node.matches(".code-block") ? [node] : [])];
  for (const code of codes) {
    const pre = code.querySelector("pre");
    pre.tabIndex = 0; // long lines are scrolled by keyboard too
    code.append(copyButton(() => pre.textContent, "Copy code"));
  }
  return node;
}
