/**
 * Colours for code. Called by markdown.js; knows nothing of the page. A scanner with one pattern a family of languages,
 * not a parser: it may be wrong, but never loses text.
 */

const MAX_CHARS = 60_000; // longer code stays plain

const words = (text) => new Set(text.split(/\s+/));

const CODE = words(`
  abstract and any as assert async auto await bool boolean break byte case catch char class const constexpr
  continue def default defer del delete do double dyn elif else elsif end enum except explicit export extends
  extern f32 f64 false False final finally float fn for foreach from func function global go goto if impl implements
  import in inline instanceof int interface is i32 i64 lambda let local long loop match mod module mut mutable
  namespace new nil noexcept None nonlocal not null nullptr of operator or override package pass private protected pub
  public raise range readonly record register return select self Self set short signed sizeof static str string struct
  super switch template then this throw throws trait true True try type typedef typeof u8 u32 u64 undefined union
  unless unsafe unsigned until use using var virtual void volatile when where while with yield`);
const SHELL = words(`
  alias case cd do done elif else esac exit export fi for function if in local return set source sudo then unset until
  while`);
const SQL = words(`
  add all alter and as asc between by case check constraint create cross default delete desc distinct drop else end
  exists foreign from full group having in index inner insert into is join key left like limit not null offset on or
  order outer primary references right select set table then union unique update using values view when where with`);
const DATA = words("true false null yes no on off");

// `(?![^])` is the end of the code; `$` is that of a line.
const STARS = /\/\*[\s\S]*?(?:\*\/|(?![^]))/;
const SLASHES = new RegExp(`//[^\\n]*|${STARS.source}`);
const QUOTED = /"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?/;
const TRIPLE = new RegExp(`"""[\\s\\S]*?(?:"""|(?![^]))|'''[\\s\\S]*?(?:'''|(?![^]))|${QUOTED.source}`);
const BACKTICK = new RegExp("`(?:[^`\\\\]|\\\\[\\s\\S])*`?|" + QUOTED.source);
const NUMBER = /\b(?:0[xXbB][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\w*/;
const WORD = /[\p{L}_$][\p{L}\p{N}_$]*/;

const GROUPS = ["comment", "key", "string", "extra"]; // which is looked for first

/** Keywords and the patterns of comments, strings and names of their own. */
const FAMILIES = {
  hash: {
    names: "py python python3 pyx rb ruby elixir r perl",
    keywords: CODE,
    comment: /#[^\n]*/,
    string: TRIPLE,
    extra: /@[\w.]+/,
  },
  slash: {
    names:
      "c h cpp c++ cc cs csharp cuda dart go golang hpp java javascript js jsx kotlin php scala swift ts tsx typescript",
    keywords: CODE,
    comment: SLASHES,
    string: BACKTICK,
    extra: /^[ \t]*#[ \t]*\w+/,
  },
  rust: {
    names: "rust rs",
    keywords: CODE,
    comment: SLASHES,
    string: /"(?:[^"\\]|\\[\s\S])*"?|'(?:[^'\\\n]|\\.)'/,
    extra: /#!?\[[^\]\n]*\]|'\w+/,
  },
  shell: {
    names: "sh bash zsh shell console fish dockerfile makefile powershell",
    keywords: SHELL,
    comment: /(?<![\w$])#[^\n]*/,
    string: /"(?:[^"\\]|\\[\s\S])*"?|'[^']*'?/,
    extra: /\$\{[^}\n]*\}?|\$\w+|(?<=\s)--?[a-zA-Z][\w-]*/,
  },
  sql: {
    names: "sql sqlite postgres mysql",
    keywords: SQL,
    comment: new RegExp(`--[^\\n]*|${STARS.source}`),
    string: QUOTED,
    ignoreCase: true,
  },
  data: {
    names: "json jsonc yaml yml toml ini",
    keywords: DATA,
    comment: /#[^\n]*|\/\/[^\n]*/,
    string: QUOTED,
    key: /"[^"\n]*"(?=\s*:)|^[ \t]*(?:-[ \t]+)*[\w.-]+(?=\s*[:=])/,
  },
  css: {
    names: "css scss less",
    comment: STARS,
    string: QUOTED,
    extra: /[.#@][a-zA-Z][\w-]*|(?<![\w-])[\w-]+(?=\s*:)/,
  },
  markup: {
    names: "html xml svg vue",
    comment: /<!--[\s\S]*?(?:-->|(?![^]))/,
    string: /"[^"]*"?|'[^'<]*'/,
    key: /<\/?[\w:-]+|\/?>|(?<![\w:-])[\w:-]+(?==)/,
  },
  diff: {
    names: "diff patch",
    comment: /^@@[^\n]*|^(?:diff|index|---|\+\+\+)[^\n]*/,
    string: /^\+[^\n]*/,
    key: /^-[^\n]*/,
  },
};

const FAMILY_OF = new Map(
  Object.values(FAMILIES).flatMap((family) => family.names.split(" ").map((name) => [name, family])),
);

/** One pattern for a family, made when it is first needed. */
function scannerOf(family) {
  const part = (group) => (family[group] ? `(?<${group}>${family[group].source})|` : "");
  const source = GROUPS.map(part).join("");
  return (family.scanner ??= new RegExp(`${source}(?<number>${NUMBER.source})|(?<word>${WORD.source})`, "gmu"));
}

/** The code as trees: strings, and spans with a class for their kind. An unknown language stays plain. */
export function highlight(code, language) {
  const family = FAMILY_OF.get(language);
  if (!family || code.length > MAX_CHARS) return [code];
  const trees = [];
  let done = 0;
  for (const match of code.matchAll(scannerOf(family))) {
    const kind = kindOf(match, code, family);
    if (!kind || !match[0]) continue;
    if (match.index > done) trees.push(code.slice(done, match.index));
    trees.push(["span", { class: `code-${kind}` }, match[0]]);
    done = match.index + match[0].length;
  }
  trees.push(code.slice(done));
  return trees;
}

function kindOf({ groups, index, 0: text }, code, { keywords, ignoreCase }) {
  const kind = [...GROUPS, "number"].find((group) => groups[group] !== undefined);
  if (kind) return kind;
  if (keywords?.has(ignoreCase ? text.toLowerCase() : text)) return "keyword";
  if (code[index + text.length] === "(") return "function";
  return /^[A-Z][a-z]/.test(text) ? "type" : null;
}
