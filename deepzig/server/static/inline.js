/**
 * What stands inside a paragraph: emphasis, code, links, formulas. Called by markdown.js; calls math.js.
 *
 * One pass from left to right; runs of `*`, `_` and `~` are paired afterwards. Links lead to http, https and mailto
 * only; everything else stays text.
 */

import { mathTree } from "./math.js";

const PUNCTUATION = /[!-/:-@[-`{-~]/; // of ASCII: what a backslash can escape
const MARK = /[\p{P}\p{S}]/u;
const ADDRESS = /https?:\/\/[^\s<>"`]+/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const LINK =
  /!?\[((?:[^[\]\\]|\\.|\[[^[\]]{0,200}\]){0,1000})\]\( *<?((?:[^\s()<>]|\([^\s()]{0,200}\)){1,2000})>?(?: +"[^"]{0,300}")? *\)/y;
const ENTITY = /&#?\w{2,4};/y;
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": "\u00a0" };
const MAX_DEPTH = 6; // of links in each other
const MAX_EMPHASIS = 16; // of emphasis in emphasis: the nodes that come of it are walked recursively

/** The trees of one paragraph. */
export function parseInline(text, depth = 0) {
  if (depth > MAX_DEPTH) return [text];
  const pieces = []; // strings, trees, and runs {mark, count, opens, closes} that may become emphasis
  const missing = new Set(); // closing marks that are not to be found any more: they are searched for once
  for (let at = 0; at < text.length;) {
    const found = READERS[text[at]]?.(text, at, missing, depth);
    const piece = found?.piece ?? text[at];
    if (typeof piece === "string" && typeof pieces.at(-1) === "string") pieces[pieces.length - 1] += piece;
    else pieces.push(piece);
    at = found?.end ?? at + 1;
  }
  return pairEmphasis(pieces);
}

/** What can begin with a character: `{piece, end}`, or null where it stays an ordinary one. */
const READERS = {
  "\\": escaped,
  "`": code,
  $: dollars,
  "\n": (text, at) => ({ piece: ["br", {}], end: at + 1 }),
  "*": run,
  _: run,
  "~": run,
  "!": link,
  "[": link,
  "<": autolink,
  h: bareAddress,
  "&": entity,
};

function escaped(text, at, missing) {
  const next = text[at + 1];
  if (next === "(" || next === "[") {
    const close = next === "(" ? "\\)" : "\\]";
    const end = missing.has(close) ? -1 : text.indexOf(close, at + 2);
    if (end >= 0) return { piece: mathTree(text.slice(at + 2, end), next === "["), end: end + 2 };
    missing.add(close);
  }
  if (next === "\n") return { piece: ["br", {}], end: at + 2 };
  return next !== undefined && PUNCTUATION.test(next) ? { piece: next, end: at + 2 } : null;
}

function code(text, at, missing) {
  const mark = text.slice(at, endOfRun(text, at));
  const start = at + mark.length;
  let end = missing.has(mark) ? -1 : text.indexOf(mark, start);
  while (end >= 0 && endOfRun(text, end) - end > mark.length) end = text.indexOf(mark, endOfRun(text, end));
  if (end < 0) {
    missing.add(mark);
    return { piece: mark, end: start };
  }
  const inside = text.slice(start, end).replaceAll("\n", " ");
  const isPadded = /^ .* $/.test(inside) && inside.trim();
  return { piece: ["code", {}, isPadded ? inside.slice(1, -1) : inside], end: end + mark.length };
}

/** Where the run of one and the same character that begins at `at` ends. */
function endOfRun(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end++;
  return end;
}

/** `$x$`, unless it looks like prices: no blank inside the dollars, no digit after them. */
function dollars(text, at, missing) {
  const mark = text[at + 1] === "$" ? "$$" : "$";
  const start = at + mark.length;
  if (missing.has(mark)) return { piece: mark, end: start };
  if (mark === "$" && /\s/.test(text[start] ?? " ")) return null;
  for (let end = text.indexOf(mark, start); end >= 0; end = text.indexOf(mark, end + 1)) {
    if (text[end - 1] === "\\" || end === start) continue;
    if (mark === "$" && (/\s/.test(text[end - 1]) || /\d/.test(text[end + 1] ?? ""))) return null;
    return { piece: mathTree(text.slice(start, end), mark === "$$"), end: end + mark.length };
  }
  missing.add(mark);
  return { piece: mark, end: start };
}

function run(text, at) {
  const mark = text[at];
  const end = endOfRun(text, at);
  const count = end - at;
  const [before, after] = [text[at - 1] ?? " ", text[end] ?? " "];
  const [isLeft, isRight] = [flanks(before, after), flanks(after, before)];
  const opens = isLeft && (mark !== "_" || !isRight || MARK.test(before));
  const closes = isRight && (mark !== "_" || !isLeft || MARK.test(after));
  if ((!opens && !closes) || (mark === "~" && count !== 2)) return { piece: mark.repeat(count), end };
  return { piece: { mark, count, opens, closes }, end };
}

/** Whether a run belongs to the text on its `inner` side. */
function flanks(outer, inner) {
  return /\S/.test(inner) && (!MARK.test(inner) || /\s/.test(outer) || MARK.test(outer));
}

function link(text, at, _, depth) {
  if (text[at] === "!" && text[at + 1] !== "[") return null;
  const found = matchAt(LINK, text, at);
  if (!found) return null;
  const [all, label, address] = found;
  const inside = parseInline(all[0] === "!" ? `image: ${label || address}` : label, depth + 1);
  return { piece: linkTree(address, inside), end: at + all.length };
}

function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

function autolink(text, at) {
  const found = matchAt(AUTOLINK, text, at);
  return found && { piece: linkTree(found[1], [found[1]]), end: at + found[0].length };
}

function bareAddress(text, at) {
  if (/\w/.test(text[at - 1] ?? "")) return null;
  let address = matchAt(ADDRESS, text, at)?.[0];
  if (!address) return null;
  while (/[.,;:!?*_~'"]$/.test(address) || (address.endsWith(")") && !address.includes("(")))
    address = address.slice(0, -1);
  return { piece: linkTree(address, [address]), end: at + address.length };
}

function linkTree(address, children) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(address)) return ["span", {}, ...children, ` (${address})`];
  return ["a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children];
}

function entity(text, at) {
  const found = matchAt(ENTITY, text, at);
  const piece = ENTITIES[found?.[0]];
  return piece ? { piece, end: at + found[0].length } : null;
}

/** CommonMark's "process emphasis": each closing run takes the nearest run that can open it. */
function pairEmphasis(nodes) {
  const floor = {}; // for each kind of closing run: no opener is to be found below
  const depths = new Map(); // of the emphasis made so far
  for (let at = 0; at < nodes.length; at++) {
    const closer = nodes[at];
    if (!closer.closes) continue; // or no run
    const kind = `${closer.mark}${closer.opens}${closer.count % 3}`;
    let from = at - 1;
    const lowest = floor[kind] ?? 0;
    while (from >= lowest && !canPair(nodes[from], closer)) from--;
    if (from < lowest) {
      floor[kind] = at;
      if (!closer.opens) nodes[at] = closer.mark.repeat(closer.count);
      continue;
    }
    const opener = nodes[from];
    const used = closer.mark === "~" || (opener.count >= 2 && closer.count >= 2) ? 2 : 1;
    const tag = closer.mark === "~" ? "del" : used === 2 ? "strong" : "em";
    const within = nodes.slice(from + 1, at);
    const depth = within.reduce((most, node) => Math.max(most, depths.get(node) ?? 0), 0) + 1;
    if (depth > MAX_EMPHASIS) continue;
    const made = [tag, {}, ...within.map(asText)];
    depths.set(made, depth);
    const left = opener.count > used ? [{ ...opener, count: opener.count - used }] : [];
    const right = closer.count > used ? [{ ...closer, count: closer.count - used }] : [];
    nodes.splice(from, at - from + 1, ...left, made, ...right);
    for (const name of Object.keys(floor)) floor[name] = Math.min(floor[name], from); // places have moved
    at = from + left.length; // the rest of the closer is looked at next
  }
  return nodes.map(asText);
}

function canPair(opener, closer) {
  if (!opener.opens || opener.mark !== closer.mark) return false;
  if (!opener.closes && !closer.opens) return true;
  return (opener.count + closer.count) % 3 !== 0 || (opener.count % 3 === 0 && closer.count % 3 === 0);
}

function asText(node) {
  return node.mark === undefined ? node : node.mark.repeat(node.count);
}
