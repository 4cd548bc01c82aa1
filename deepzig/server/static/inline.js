/**
 * What stands inside a paragraph: emphasis, code, links, formulas. Called by markdown.js; calls math.js.
 *
 * One pass from left to right. Runs of `*`, `_` and `~` are paired afterwards, by CommonMark's rules. Links lead to
 * http, https and mailto only; everything else stays text.
 */

import { mathTree } from "./math.js";

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const ADDRESS = /https?:\/\/[^\s<>"`]+/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const LINK =
  /!?\[((?:[^[\]\\]|\\.|\[[^[\]]{0,200}\]){0,1000})\]\( *<?((?:[^\s()<>]|\([^\s()]{0,200}\)){1,2000})>?(?: +"[^"]{0,300}")? *\)/y;
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": "\u00a0" };
const MAX_DEPTH = 6; // of links in each other
const MAX_EMPHASIS = 16; // of emphasis in emphasis: the nodes that come of it are walked recursively

/** The trees of one paragraph. */
export function parseInline(text, depth = 0) {
  if (depth > MAX_DEPTH) return [text];
  const pieces = []; // strings, trees, and runs {mark, count, opens, closes} that may become emphasis
  const missing = new Set(); // closing marks that are not to be found any more: they are searched for once
  let plain = "";
  const add = (piece) => {
    if (plain) pieces.push(plain);
    plain = "";
    if (piece) pieces.push(piece);
  };
  for (let at = 0; at < text.length;) {
    const found = special(text, at, depth, missing);
    if (!found) {
      plain += text[at++];
    } else if (typeof found.piece === "string") {
      plain += found.piece;
      at = found.end;
    } else {
      add(found.piece);
      at = found.end;
    }
  }
  add(null);
  return pairEmphasis(pieces);
}

/** What begins at `at`: `{piece, end}`, or null for an ordinary character. */
function special(text, at, depth, missing) {
  switch (text[at]) {
    case "\\":
      return escaped(text, at, missing);
    case "`":
      return code(text, at, missing);
    case "$":
      return dollars(text, at, missing);
    case "\n":
      return { piece: ["br", {}], end: at + 1 };
    case "*":
    case "_":
    case "~":
      return run(text, at);
    case "!":
    case "[":
      return link(text, at, depth);
    case "<":
      return autolink(text, at);
    case "h":
      return bareAddress(text, at);
    case "&":
      return entity(text, at);
    default:
      return null;
  }
}

function escaped(text, at, missing) {
  const next = text[at + 1];
  if (next === "(" || next === "[") {
    const close = next === "(" ? "\\)" : "\\]";
    const end = missing.has(close) ? -1 : text.indexOf(close, at + 2);
    if (end < 0) missing.add(close);
    else return { piece: mathTree(text.slice(at + 2, end), next === "["), end: end + 2 };
  }
  if (next === "\n") return { piece: ["br", {}], end: at + 2 };
  return next !== undefined && PUNCTUATION.test(next) ? { piece: next, end: at + 2 } : null;
}

function code(text, at, missing) {
  let length = 1;
  while (text[at + length] === "`") length++;
  const mark = "`".repeat(length);
  if (!missing.has(mark)) {
    for (let end = text.indexOf(mark, at + length); end >= 0; end = text.indexOf(mark, end)) {
      let found = length;
      while (text[end + found] === "`") found++;
      if (found === length) {
        const inside = text.slice(at + length, end).replaceAll("\n", " ");
        const isPadded = /^ .* $/.test(inside) && inside.trim();
        return { piece: ["code", {}, isPadded ? inside.slice(1, -1) : inside], end: end + length };
      }
      end += found;
    }
    missing.add(mark);
  }
  return { piece: mark, end: at + length };
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
  let count = 1;
  while (text[at + count] === mark) count++;
  const [before, after] = [text[at - 1] ?? " ", text[at + count] ?? " "];
  const leftFlanking = !/\s/.test(after) && (!isPunctuation(after) || /\s/.test(before) || isPunctuation(before));
  const rightFlanking = !/\s/.test(before) && (!isPunctuation(before) || /\s/.test(after) || isPunctuation(after));
  const isWordBound = mark === "_";
  const opens = leftFlanking && (!isWordBound || !rightFlanking || isPunctuation(before));
  const closes = rightFlanking && (!isWordBound || !leftFlanking || isPunctuation(after));
  if ((!opens && !closes) || (mark === "~" && count !== 2)) return { piece: mark.repeat(count), end: at + count };
  return { piece: { mark, count, opens, closes }, end: at + count };
}

function isPunctuation(character) {
  return /[\p{P}\p{S}]/u.test(character);
}

function link(text, at, depth) {
  if (text[at] === "!" && text[at + 1] !== "[") return null;
  LINK.lastIndex = at;
  const found = LINK.exec(text);
  if (!found) return null;
  const end = LINK.lastIndex; // the pattern is used again for what is inside
  const isImage = text[at] === "!";
  const inside = parseInline(isImage ? `image: ${found[1] || found[2]}` : found[1], depth + 1);
  return { piece: linkTree(found[2], inside), end };
}

function autolink(text, at) {
  AUTOLINK.lastIndex = at;
  const found = AUTOLINK.exec(text);
  return found && { piece: linkTree(found[1], [found[1]]), end: AUTOLINK.lastIndex };
}

function bareAddress(text, at) {
  if (/\w/.test(text[at - 1] ?? "")) return null;
  ADDRESS.lastIndex = at;
  const found = ADDRESS.exec(text);
  if (!found) return null;
  let address = found[0];
  while (/[.,;:!?*_~'"]$/.test(address) || (address.endsWith(")") && !address.includes("(")))
    address = address.slice(0, -1);
  return { piece: linkTree(address, [address]), end: at + address.length };
}

function linkTree(address, children) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(address)) return ["span", {}, ...children, ` (${address})`];
  return ["a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children];
}

function entity(text, at) {
  const end = text.indexOf(";", at);
  const found = end > at && end - at < 7 ? ENTITIES[text.slice(at, end + 1)] : undefined;
  return found ? { piece: found, end: end + 1 } : null;
}

/** CommonMark's "process emphasis": each closing run takes the nearest run that can open it. */
function pairEmphasis(pieces) {
  const nodes = [...pieces];
  const isRun = (node) => node?.mark !== undefined;
  const floor = {}; // for each kind of closing run: no opener is to be found below
  const depths = new Map(); // of the emphasis made so far
  for (let at = 0; at < nodes.length; at++) {
    const closer = nodes[at];
    if (!isRun(closer) || !closer.closes) continue;
    const kind = `${closer.mark}${closer.opens}${closer.count % 3}`;
    let from = at - 1;
    const lowest = floor[kind] ?? 0;
    while (from >= lowest && !(isRun(nodes[from]) && canPair(nodes[from], closer))) from--;
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
