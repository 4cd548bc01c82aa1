/**
 * A subset of TeX's formulas as MathML, which browsers draw themselves. Called by markdown.js and inline.js.
 *
 * A command that is not known is shown as it was written. No macros can be defined, so the result is never larger than
 * a constant times the source; nesting is limited.
 */

import * as symbols from "./math_symbols.js";

const MAX_DEPTH = 60;
const MAX_CHARS = 20_000;
const TOKEN = /\\(?:[a-zA-Z]+\*?|[\s\S])|[\s\S]/gu;
const FENCES = new Set("()[]|/⟨⟩‖⌊⌋⌈⌉{}");
const WITHOUT_EFFECT = /^(?:displaystyle|textstyle|scriptstyle|(?:no)?limits|nonumber|notag|hline|[bB]igg?[lrm]?)$/;
const ROW_SPACE = /^\[-?[\d.]+[a-z]{2}\]/; // \\[4pt]
const TEXT = /^(?:text|textrm|textbf|textit|texttt|mbox)$/;
const UPRIGHT = /^(?:operatorname|mathrm|mathit|mathsf|mathtt)$/;

/** The formula as a `math` tree. `isDisplay`: on a line of its own. */
export function mathTree(source, isDisplay) {
  try {
    const content = source.length > MAX_CHARS ? null : new Parser(source).all();
    if (content) return ["math", { display: isDisplay ? "block" : "inline" }, content];
  } catch (error) {
    if (!(error instanceof TexError)) throw error;
  }
  return ["code", {}, source];
}

/** The formula cannot be read; it is shown as source. */
class TexError extends Error {}

class Parser {
  #tokens;
  #at = 0;
  #depth = 0;

  constructor(source) {
    this.#tokens = source.match(TOKEN) ?? [];
  }

  all() {
    const tree = this.#table(["", "", "aligned"], () => false);
    if (this.#at < this.#tokens.length) throw new TexError("a brace too many");
    return tree;
  }

  #peek() {
    return this.#tokens[this.#at];
  }

  #next() {
    if (this.#at >= this.#tokens.length) throw new TexError("the formula ends too soon");
    return this.#tokens[this.#at++];
  }

  #skipBlanks() {
    while (/^\s$/.test(this.#peek() ?? "")) this.#at++;
  }

  /** Atoms with their scripts until `isEnd` says so. */
  #row(isEnd) {
    if (++this.#depth > MAX_DEPTH) throw new TexError("nested too deep");
    const atoms = [];
    for (this.#skipBlanks(); this.#peek() !== undefined && !isEnd(this.#peek()); this.#skipBlanks()) {
      const atom = this.#scripted();
      if (atom) atoms.push(atom);
    }
    this.#depth--;
    return atoms.length === 1 ? atoms[0] : ["mrow", {}, ...atoms];
  }

  /** An argument: a group in braces, or a single atom; \frac12 has two. */
  #argument() {
    this.#skipBlanks();
    if (/^\d$/.test(this.#peek() ?? "")) return ["mn", {}, this.#next()];
    if (++this.#depth > MAX_DEPTH) throw new TexError("nested too deep"); // \hat\hat… has no braces
    const atom = this.#atom() ?? ["mrow", {}];
    this.#depth--;
    return atom;
  }

  /** A row up to the token that ends it, which is passed. */
  #rowTo(end) {
    const row = this.#row((token) => token === end);
    this.#next();
    return row;
  }

  /** The characters of an argument, for texts and names. */
  #rawArgument() {
    this.#skipBlanks();
    if (this.#peek() !== "{") return this.#next();
    let depth = 0;
    let text = "";
    do {
      const token = this.#next();
      depth += token === "{" ? 1 : token === "}" ? -1 : 0;
      text += token;
    } while (depth > 0);
    return text.slice(1, -1).replace(/\\([^a-zA-Z])/g, "$1");
  }

  /** An atom and what stands below and above it. */
  #scripted() {
    const base = /^[_^]$/.test(this.#peek()) ? null : this.#atom();
    let below = null;
    let above = null;
    for (;;) {
      this.#skipBlanks();
      const token = this.#peek();
      if (token === "\\limits" || token === "\\nolimits") this.#at++;
      else if (token === "_" && !below) below = (this.#at++, this.#argument());
      else if (token === "^" && !above) above = (this.#at++, this.#argument());
      else if (token === "'" && !above) above = this.#primes();
      else break;
    }
    if (!below && !above) return base;
    const hasLimits = base?.[1].movablelimits || base?.[0] === "munder" || base?.at(-1)[2] === "⏞";
    const [under, over, both] = hasLimits ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
    const tag = below && above ? both : below ? under : over;
    return [tag, {}, base ?? ["mrow", {}], ...[below, above].filter(Boolean)];
  }

  #primes() {
    let primes = "";
    for (; this.#peek() === "'"; this.#at++) primes += "′";
    return ["mo", {}, primes];
  }

  #atom() {
    const token = this.#next();
    if (token === "{") return this.#rowTo("}");
    if (token === "}" || token === "&") throw new TexError(`a ${token} out of place`);
    if (token === "~") return ["mspace", { width: "0.25em" }];
    if (/^\d$/.test(token)) return ["mn", {}, token + this.#digits()];
    if (/^\p{L}$/u.test(token)) return ["mi", {}, token];
    if (token.length > 1 && token[0] === "\\") return this.#command(token.slice(1));
    if (FENCES.has(token)) return ["mo", { stretchy: "false" }, token];
    return ["mo", {}, token === "-" ? "−" : token === "*" ? "∗" : token];
  }

  #digits() {
    let digits = "";
    while (/^(?:\d|[.,]\d)/.test((this.#peek() ?? "") + (this.#tokens[this.#at + 1] ?? ""))) digits += this.#next();
    return digits;
  }

  #command(name) {
    const letter = symbols.LETTERS.get(name);
    if (letter) return ["mi", /[Α-Ω]/.test(letter) ? { mathvariant: "normal" } : {}, letter];
    if (symbols.OPERATORS.has(name)) return ["mo", {}, symbols.OPERATORS.get(name)];
    if (symbols.LIMIT_OPERATORS.has(name)) return withLimits(symbols.LIMIT_OPERATORS.get(name));
    if (symbols.FUNCTIONS.has(name)) return ["mi", {}, name];
    if (symbols.FENCES.has(name)) return ["mo", { stretchy: "false" }, symbols.FENCES.get(name)];
    if (symbols.SPACES.has(name)) return ["mspace", { width: `${symbols.SPACES.get(name)}em` }];
    if (symbols.ALPHABETS.has(name)) return inAlphabet(symbols.ALPHABETS.get(name), this.#rawArgument());
    if (symbols.ACCENTS.has(name)) return this.#accent("mover", name, symbols.ACCENTS.get(name));
    if (symbols.ACCENTS_BELOW.has(name)) return this.#accent("munder", name, symbols.ACCENTS_BELOW.get(name));
    if (WITHOUT_EFFECT.test(name)) return null;
    if (TEXT.test(name))
      return ["mtext", name === "textbf" ? { class: "tex-bold" } : {}, this.#rawArgument().replaceAll(" ", "\u00a0")];
    if (UPRIGHT.test(name)) return ["mi", { mathvariant: "normal" }, this.#rawArgument()];
    if (name === "operatorname*") return withLimits(this.#rawArgument());
    return this.#structure(name);
  }

  #accent(tag, name, mark) {
    const isWide = /wide|over|under/.test(name);
    return [tag, { accent: String(tag === "mover") }, this.#argument(), ["mo", { stretchy: String(isWide) }, mark]];
  }

  /** Commands that build something of their arguments. */
  #structure(name) {
    if (/^[dtc]?frac$/.test(name)) return ["mfrac", {}, this.#argument(), this.#argument()];
    if (/^[%$#_&]$/.test(name)) return ["mo", {}, name];
    if (name === "binom")
      return fenced("(", ["mfrac", { linethickness: "0" }, this.#argument(), this.#argument()], ")");
    if (name === "sqrt") return this.#root();
    if (name === "left") return this.#leftRight();
    if (name === "begin") return this.#environment();
    if (name === "overset" || name === "underset") {
      const mark = this.#argument();
      return [name === "overset" ? "mover" : "munder", {}, this.#argument(), mark];
    }
    if (name === "boxed") return ["mrow", { class: "tex-boxed" }, this.#argument()];
    if (name === "phantom") return ["mphantom", {}, this.#argument()];
    if (name === "not") return negated(this.#argument());
    if (name === "pmod") return fenced("(", ["mrow", {}, ["mo", { rspace: "0.3em" }, "mod"], this.#argument()], ")");
    if (name === "bmod") return ["mo", { lspace: "0.3em", rspace: "0.3em" }, "mod"];
    if (/^(?:\\|right|end)$/.test(name)) throw new TexError(`\\${name} out of place`);
    if (!/^(?:tag|label)$/.test(name)) return ["mtext", { class: "tex-unknown" }, `\\${name}`];
    this.#rawArgument();
    return null;
  }

  #root() {
    this.#skipBlanks();
    if (this.#peek() !== "[") return ["msqrt", {}, this.#argument()];
    this.#next();
    const degree = this.#rowTo("]");
    return ["mroot", {}, this.#argument(), degree];
  }

  #leftRight() {
    const open = this.#fence();
    const parts = [];
    for (;;) {
      parts.push(this.#row((token) => token === "\\right" || token === "\\middle"));
      const isMiddle = this.#next() === "\\middle";
      const fence = this.#fence();
      if (!isMiddle) return fenced(open, ["mrow", {}, ...parts], fence);
      parts.push(stretched(fence));
    }
  }

  #fence() {
    this.#skipBlanks();
    const token = this.#next();
    if (token === ".") return "";
    const fence = FENCES.has(token) ? token : symbols.FENCES.get(token.slice(1));
    if (!fence) throw new TexError(`${token} is no bracket`);
    return fence;
  }

  #environment() {
    const name = this.#rawArgument();
    const kind = symbols.ENVIRONMENTS.get(name.replace(/\*$/, ""));
    if (!kind) throw new TexError(`no environment ${name}`);
    if (name === "array") this.#rawArgument();
    const table = this.#table(kind, (token) => token === "\\end");
    this.#next();
    if (this.#rawArgument() !== name) throw new TexError(`${name} is not ended`);
    return table;
  }

  /** Rows divided by \\ and cells by &. A single cell needs no table. */
  #table([open, close, style], isEnd) {
    const rows = [[]];
    for (;;) {
      rows.at(-1).push(this.#row((token) => token === "&" || token === "\\\\" || token === "}" || isEnd(token)));
      const token = this.#peek();
      if (token !== "&" && token !== "\\\\") break;
      this.#at++;
      if (token !== "\\\\") continue;
      rows.push([]);
      const space = ROW_SPACE.exec(this.#tokens.slice(this.#at, this.#at + 12).join(""));
      this.#at += space ? space[0].length : 0;
    }
    const isEmpty = ([cell, ...more]) => !more.length && cell[0] === "mrow" && cell.length === 2;
    if (rows.length > 1 && isEmpty(rows.at(-1))) rows.pop();
    if (rows.length === 1 && rows[0].length === 1 && !open) return rows[0][0];
    const lines = rows.map((row) => ["mtr", {}, ...row.map((cell) => ["mtd", {}, cell])]);
    const attributes = style ? { class: `tex-${style}` } : {};
    if (style === "aligned") attributes.displaystyle = "true";
    return fenced(open, ["mtable", attributes, ...lines], close);
  }
}

function withLimits(text) {
  return ["mo", { movablelimits: "true", ...(text.length > 1 ? { lspace: "0", rspace: "0.17em" } : {}) }, text];
}

function inAlphabet([upper, lower, digit, exceptions], text) {
  const letter = symbols.LETTERS.get(text.slice(1)); // \mathbf{\alpha}
  if (text[0] === "\\" && letter) return ["mi", {}, letter];
  const moved = new Map(exceptions.split(" ").map((pair) => [...pair]));
  const shift = (char) => {
    if (moved.has(char)) return moved.get(char);
    if (/[A-Z]/.test(char)) return String.fromCodePoint(upper + char.charCodeAt(0) - 65);
    if (/[a-z]/.test(char)) return String.fromCodePoint(lower + char.charCodeAt(0) - 97);
    return /\d/.test(char) && digit ? String.fromCodePoint(digit + Number(char)) : char;
  };
  return ["mi", { mathvariant: "normal" }, [...text.replaceAll(" ", "")].map(shift).join("")];
}

function negated(atom) {
  const last = atom.at(-1);
  return typeof last === "string" ? [...atom.slice(0, -1), `${last}\u0338`] : atom;
}

function stretched(fence) {
  return ["mo", { stretchy: "true", fence: "true" }, fence];
}

function fenced(open, inside, close) {
  if (!open && !close) return inside;
  return ["mrow", {}, ...(open ? [stretched(open)] : []), inside, ...(close ? [stretched(close)] : [])];
}
