/**
 * Markdown to trees, block by block: paragraphs, headings, lists, quotes, tables, code and formulas. inline.js reads
 * what is inside them; prose.js turns trees into nodes. HTML is text here, and images are links: nothing is loaded.
 *
 * Reads what models write rather than all of CommonMark: a single line break stays one, and nested lists may be
 * indented by less than the marker. A tree is `[tag, attributes, ...children]`.
 */

import { highlight } from "./highlight.js";
import { parseInline } from "./inline.js";
import { mathTree } from "./math.js";

const MAX_DEPTH = 12; // of lists and quotes; deeper ones are text

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*)|)$/;
const MATH_OPEN = /^ {0,3}(\$\$|\\\[)/;

/** The blocks of a text: `{source, tree()}`. A block with the same source has the same tree. */
export function parseMarkdown(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  return blocksOf(lines).map(({ start, end, read }) => ({
    source: lines.slice(start, end).join("\n"),
    tree: () => read(0),
  }));
}

/** Trees of the blocks within a list item or a quote. */
function treesOf(lines, depth) {
  if (depth > MAX_DEPTH) return [["p", {}, lines.join("\n")]];
  return blocksOf(lines).map(({ read }) => read(depth));
}

/** Where each block starts and ends, and how to read it: `read(depth)`. */
function blocksOf(lines) {
  const blocks = [];
  for (let start = 0; start < lines.length;) {
    if (!lines[start].trim()) {
      start++;
      continue;
    }
    const block = blockAt(lines, start);
    blocks.push({ start, ...block });
    start = block.end;
  }
  return blocks;
}

function blockAt(lines, start) {
  const line = lines[start];
  return (
    fenceAt(lines, start) ??
    mathAt(lines, start) ??
    headingAt(line, start) ??
    (RULE.test(line) ? { end: start + 1, read: () => ["hr", {}] } : null) ??
    (QUOTE.test(line) ? quoteAt(lines, start) : null) ??
    (ITEM.test(line) ? listAt(lines, start) : null) ??
    tableAt(lines, start) ??
    paragraphAt(lines, start)
  );
}

/** Whether a line begins a block that ends the paragraph before it. */
function interrupts(lines, at) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  if (MATH_OPEN.test(line)) return mathAt(lines, at) !== null;
  const item = ITEM.exec(line);
  if (item) return Boolean(item[4]) && (!/^\d/.test(item[2]) || parseInt(item[2], 10) === 1);
  return tableAt(lines, at) !== null;
}

function fenceAt(lines, start) {
  const open = FENCE.exec(lines[start]);
  if (!open) return null;
  const [mark, length] = [open[1][0], open[1].length];
  let close = start + 1;
  while (close < lines.length && !isClosingFence(lines[close], mark, length)) close++;
  const indent = lines[start].search(/\S/);
  const read = () =>
    codeTree(
      lines
        .slice(start + 1, close)
        .map((line) => dedent(line, indent))
        .join("\n"),
      open[2].trim().split(/\s/)[0],
    );
  return { end: Math.min(close + 1, lines.length), read };
}

function isClosingFence(line, mark, length) {
  const text = line.trim();
  return text.length >= length && line.search(/\S/) <= 3 && text.split(mark).join("") === "";
}

function codeTree(code, language) {
  const shown = /^[\w+#.-]{1,20}$/.test(language) ? language.toLowerCase() : "";
  return [
    "div",
    { class: "code-block" },
    ["div", { class: "code-language" }, shown],
    ["pre", {}, ["code", {}, ...highlight(code, shown)]],
  ];
}

/** A formula on lines of its own; null until it is closed, so that a stream does not show half of one. */
function mathAt(lines, start) {
  const open = MATH_OPEN.exec(lines[start]);
  if (!open) return null;
  const close = open[1] === "$$" ? "$$" : "\\]";
  let text = lines[start].slice(open[0].length);
  for (let at = start; ; text = lines[at]) {
    const found = text.indexOf(close);
    if (found >= 0) {
      if (
        text
          .slice(found + close.length)
          .replace(/[.,;]/, "")
          .trim()
      )
        return null; // text goes on: inline.js reads it
      const first = lines[start].slice(open[0].length);
      const inside =
        at === start ? first.slice(0, found) : [first, ...lines.slice(start + 1, at), text.slice(0, found)].join("\n");
      return { end: at + 1, read: () => ["div", { class: "formula" }, mathTree(inside, true)] };
    }
    if (++at >= lines.length) return null;
  }
}

function headingAt(line, start) {
  const found = HEADING.exec(line);
  if (!found) return null;
  const text = (found[2] ?? "").trim().replace(/(^|[^#\s])[ ]?#+$/, "$1");
  return { end: start + 1, read: () => [`h${found[1].length}`, {}, ...parseInline(text)] };
}

function quoteAt(lines, start) {
  let end = start;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inside = lines.slice(start, end).map((line) => line.replace(QUOTE, ""));
  return { end, read: (depth) => ["blockquote", {}, ...treesOf(inside, depth + 1)] };
}

function listAt(lines, start) {
  const first = ITEM.exec(lines[start]);
  const isOrdered = /^\d/.test(first[2]);
  const mark = first[2].at(-1);
  const items = [];
  let isLoose = false;
  let at = start;
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[2].at(-1) !== mark || RULE.test(lines[at])) break;
    const { inside, end, hasGap } = itemAt(lines, at, item);
    items.push(inside);
    isLoose ||= hasGap;
    at = end;
    let next = at;
    while (next < lines.length && !lines[next].trim()) next++;
    const follows = next < lines.length ? ITEM.exec(lines[next]) : null;
    if (next === at || !follows || follows[2].at(-1) !== mark) continue;
    isLoose = true;
    at = next;
  }
  const tag = isOrdered ? "ol" : "ul";
  const attributes = isOrdered && parseInt(first[2], 10) !== 1 ? { start: String(parseInt(first[2], 10)) } : {};
  return { end: at, read: (depth) => [tag, attributes, ...items.map((inside) => itemTree(inside, isLoose, depth))] };
}

/** The lines of one item without their indentation, and where it ends. */
function itemAt(lines, start, item) {
  const gap = item[3] && item[3].length <= 4 ? item[3].length : 1;
  const indent = item[1].length + item[2].length + gap;
  const inside = [item[4] === undefined ? "" : (item[3].length > 4 ? item[3].slice(1) : "") + item[4]];
  let hasGap = false;
  let at = start + 1;
  for (; at < lines.length; at++) {
    const line = lines[at];
    if (!line.trim()) {
      let next = at + 1;
      while (next < lines.length && !lines[next].trim()) next++;
      if (next >= lines.length || indentOf(lines[next]) < Math.min(indent, 2)) break;
      hasGap = true;
      inside.push("");
      continue;
    }
    const depth = indentOf(line);
    if (depth >= Math.min(indent, 2) && depth > item[1].length) inside.push(dedent(line, indent));
    else if (lines[at - 1].trim() && !interrupts(lines, at) && !ITEM.test(line)) inside.push(line.trimStart());
    else break;
  }
  return { inside, end: at, hasGap };
}

function itemTree(inside, isLoose, depth) {
  const task = /^\[([ xX])\] +/.exec(inside[0]);
  const lines = task ? [inside[0].slice(task[0].length), ...inside.slice(1)] : inside;
  const trees = treesOf(lines, depth + 1);
  const children = isLoose ? trees : trees.flatMap((tree) => (tree[0] === "p" ? tree.slice(2) : [tree]));
  if (!task) return ["li", {}, ...children];
  const box = ["input", { type: "checkbox", disabled: "", ...(task[1] === " " ? {} : { checked: "" }) }];
  return ["li", { class: "task" }, box, ...children];
}

function tableAt(lines, start) {
  if (start + 1 >= lines.length || !lines[start].includes("|")) return null;
  const rules = cellsOf(lines[start + 1]);
  const head = cellsOf(lines[start]);
  if (head.length !== rules.length || !rules.every((cell) => /^:?-+:?$/.test(cell))) return null;
  let end = start + 2;
  while (end < lines.length && lines[end].trim() && lines[end].includes("|")) end++;
  const sides = rules.map((rule) => (rule.endsWith(":") ? (rule.startsWith(":") ? "center" : "right") : "left"));
  const row = (line, tag) => {
    const cells = cellsOf(line).slice(0, sides.length); // short rows stay short: a wide head makes no large table
    return ["tr", {}, ...cells.map((cell, column) => [tag, { class: `align-${sides[column]}` }, ...parseInline(cell)])];
  };
  const read = () => [
    "div",
    { class: "table-frame" },
    [
      "table",
      {},
      ["thead", {}, row(lines[start], "th")],
      ["tbody", {}, ...lines.slice(start + 2, end).map((line) => row(line, "td"))],
    ],
  ];
  return { end, read };
}

/** Cells of a table's row; a bar that is escaped or in code does not end one. */
function cellsOf(line) {
  const text = line
    .trim()
    .replace(/^\|/, "")
    .replace(/(^|[^\\])\|$/, "$1");
  const cells = [""];
  let inCode = false;
  for (let at = 0; at < text.length; at++) {
    if (text[at] === "\\" && text[at + 1] === "|") cells[cells.length - 1] += text[++at];
    else if (text[at] === "|" && !inCode) cells.push("");
    else {
      if (text[at] === "`") inCode = !inCode;
      cells[cells.length - 1] += text[at];
    }
  }
  return cells.map((cell) => cell.trim());
}

function paragraphAt(lines, start) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end)) end++;
  const text = lines
    .slice(start, end)
    .map((line) => line.trimStart())
    .join("\n")
    .trimEnd();
  return { end, read: () => ["p", {}, ...parseInline(text)] };
}

/** Columns before the first character; a tab counts for four. */
function indentOf(line) {
  return /^[ \t]*/.exec(line)[0].replaceAll("\t", "    ").length;
}

/** The line without its first columns, as far as they are blank. */
function dedent(line, columns) {
  let at = 0;
  for (let left = columns; left > 0 && /[ \t]/.test(line[at] ?? ""); at++) left -= line[at] === "\t" ? 4 : 1;
  return line.slice(at);
}
