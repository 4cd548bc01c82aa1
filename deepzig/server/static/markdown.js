/**
 * Markdown to trees, block by block. inline.js reads what is inside the blocks; prose.js turns trees into nodes. HTML is
 * text here, and images are links: nothing is loaded.
 *
 * Reads what models write rather than all of CommonMark: a single line break stays one, and nested lists may be
 * indented by less than the marker. A tree is `[tag, attributes, ...children]`.
 */

import { highlight } from "./highlight.js";
import { parseInline } from "./inline.js";
import { mathTree } from "./math.js";

const MAX_DEPTH = 12; // of lists and quotes; deeper ones are text

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\n]*)$/;
const CLOSING_FENCE = /^\s{0,3}(`+|~+)\s*$/;
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
  for (let start = nextText(lines, 0); start < lines.length; start = nextText(lines, blocks.at(-1).end))
    blocks.push({ start, ...blockAt(lines, start) });
  return blocks;
}

/** The first line from `at` on that is not blank. */
function nextText(lines, at) {
  while (at < lines.length && !lines[at].trim()) at++;
  return at;
}

function blockAt(lines, start) {
  const line = lines[start];
  return (
    fenceAt(lines, start) ??
    mathAt(lines, start) ??
    headingAt(lines, start) ??
    (RULE.test(line) ? { end: start + 1, read: () => ["hr", {}] } : null) ??
    quoteAt(lines, start) ??
    listAt(lines, start) ??
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
  if (item) return Boolean(item[4]) && /^(?:\D|0*1\D)/.test(item[2]);
  return tableAt(lines, at) !== null;
}

function fenceAt(lines, start) {
  const open = FENCE.exec(lines[start]);
  if (!open) return null;
  let close = start + 1;
  while (close < lines.length && !CLOSING_FENCE.exec(lines[close])?.[1].startsWith(open[1])) close++;
  const indent = lines[start].search(/\S/);
  const code = () => lines.slice(start + 1, close).map((line) => dedent(line, indent));
  const read = () => codeTree(code().join("\n"), open[2].trim().split(/\s/)[0]);
  return { end: Math.min(close + 1, lines.length), read };
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
  const inside = [lines[start].slice(open[0].length)];
  let end = start + 1;
  while (!inside.at(-1).includes(close)) {
    if (end === lines.length) return null;
    inside.push(lines[end++]);
  }
  const [last, ...after] = inside.pop().split(close);
  if (/[^\s.,;]|[.,;]\s*[.,;]/.test(after.join(close))) return null; // text goes on: inline.js reads it
  const source = [...inside, last].join("\n");
  return { end, read: () => ["div", { class: "formula" }, mathTree(source, true)] };
}

function headingAt(lines, start) {
  const found = HEADING.exec(lines[start]);
  if (!found) return null;
  const text = (found[2] ?? "").trim().replace(/(^|[^#\s])[ ]?#+$/, "$1");
  return { end: start + 1, read: () => [`h${found[1].length}`, {}, ...parseInline(text)] };
}

function quoteAt(lines, start) {
  let end = start;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  if (end === start) return null;
  const inside = lines.slice(start, end).map((line) => line.replace(QUOTE, ""));
  return { end, read: (depth) => ["blockquote", {}, ...treesOf(inside, depth + 1)] };
}

function listAt(lines, start) {
  const first = ITEM.exec(lines[start])?.[2];
  if (!first) return null;
  const number = parseInt(first, 10);
  const items = [];
  let isLoose = false;
  let end = start;
  for (let at = start; at < lines.length; at = nextText(lines, end)) {
    const item = ITEM.exec(lines[at]);
    if (item?.[2].at(-1) !== first.at(-1)) break;
    isLoose ||= at > end;
    if (RULE.test(lines[at])) break;
    const { inside, end: itemEnd, hasGap } = itemAt(lines, at, item);
    items.push(inside);
    isLoose ||= hasGap;
    end = itemEnd;
  }
  const tag = Number.isNaN(number) ? "ul" : "ol";
  const attributes = number >= 0 && number !== 1 ? { start: String(number) } : {};
  return { end, read: (depth) => [tag, attributes, ...items.map((inside) => itemTree(inside, isLoose, depth))] };
}

/** The lines of one item without their indentation, and where it ends. */
function itemAt(lines, start, item) {
  const [, before, mark, blanks = "", text = ""] = item;
  const isCode = blanks.length > 4;
  const indent = before.length + mark.length + (isCode ? 1 : blanks.length || 1);
  const inside = [(isCode ? blanks.slice(1) : "") + text];
  let hasGap = false;
  let at = start + 1;
  for (; at < lines.length; at++) {
    const line = lines[at];
    if (!line.trim()) {
      const next = nextText(lines, at);
      if (next >= lines.length || indentOf(lines[next]) < Math.min(indent, 2)) break;
      hasGap = true;
      inside.push("");
      continue;
    }
    const depth = indentOf(line);
    if (depth >= Math.min(indent, 2) && depth > before.length) inside.push(dedent(line, indent));
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
  const text = line.trim().replace(/^\||(?<!\\)\|$/g, "");
  const cells = [""];
  let inCode = false;
  for (let at = 0; at < text.length; at++) {
    const isEscaped = text.startsWith("\\|", at);
    if (isEscaped) at++;
    if (text[at] === "`") inCode = !inCode;
    if (text[at] === "|" && !inCode && !isEscaped) cells.push("");
    else cells[cells.length - 1] += text[at];
  }
  return cells.map((cell) => cell.trim());
}

function paragraphAt(lines, start) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end)) end++;
  const text = lines.slice(start, end).map((line) => line.trimStart());
  return { end, read: () => ["p", {}, ...parseInline(text.join("\n").trimEnd())] };
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
