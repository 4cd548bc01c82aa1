/** What the server is doing: load, queue, cache, which experts are chosen. Made by app.js; asks once a second. */

import { getJson } from "./api.js";
import { drawing, h, setChildren, svg } from "./dom.js";
import { formatCount, formatNumber, formatRate, formatSeconds } from "./figures.js";

const INTERVAL_MS = 1000;
const KEPT = 60; // seconds of speed that are drawn

export class StatusView {
  #app;
  #timer;
  #isAsking = false; // a server that is slow to answer is not asked twice at once
  #speeds = [];
  #cards = [card("Load"), card("Speed"), card("Cache"), card("Experts", ".wide")];
  #busiest = h("details", h("summary", "The busiest expert of each layer"), h("div"));
  #model = h("p.facts");
  #note = h("p.note-line", { role: "status" });

  constructor(app) {
    this.#app = app;
    this.element = h("div.status-page", this.#model, this.#note, h("div.cards", this.#cards));
    this.#cards[3].append(this.#busiest); // it stays, so that it stays open
  }

  /** Starts to ask; `stop` ends it. */
  show() {
    this.stop();
    this.#read();
  }

  stop() {
    clearTimeout(this.#timer);
  }

  async #read() {
    this.#timer = setTimeout(() => this.#read(), INTERVAL_MS);
    if (document.hidden || this.#isAsking) return;
    this.#isAsking = true;
    try {
      this.#draw(await getJson("status"));
      this.#note.textContent = "";
    } catch (error) {
      this.#note.textContent = error.message;
      if (error.status === 401) this.stop();
    } finally {
      this.#isAsking = false;
    }
  }

  #draw(status) {
    if (status.state === "loading") {
      this.#note.textContent = "The model is being loaded.";
      return;
    }
    this.#speeds = [...this.#speeds, status.tokens_per_s].slice(-KEPT);
    const [load, speed, cache, experts] = this.#cards;
    setChildren(load.lastChild, loadFigures(status));
    setChildren(speed.lastChild, speedFigures(status, this.#speeds));
    setChildren(cache.lastChild, cacheFigures(status));
    experts.hidden = !status.expert_load;
    if (status.expert_load) {
      setChildren(experts.children[1], expertPicture(status.expert_load));
      setChildren(this.#busiest.lastChild, busiestExperts(status.expert_load));
    }
    this.#model.textContent = `${status.model} · ${this.#app.model?.facts ?? ""}`;
  }
}

function card(title, kind = "") {
  return h(`section.card${kind}`, { "aria-label": title }, h("h2", title), h("div.card-body"));
}

/** Large figures, each with its label. */
function figures(...pairs) {
  const figure = ([value, label]) => h("div", h("span.figure-value", value), h("span.figure-label", label));
  return h("div.figures", pairs.map(figure));
}

function facts(...pairs) {
  const row = ([name, value]) => [h("dt", name), h("dd", value)];
  return h("dl.facts-list", pairs.flatMap(row));
}

function percent(part, total) {
  return `${total ? Math.round((100 * part) / total) : 0} %`;
}

function loadFigures({ running, queue, open, uptime_s: uptime }) {
  return [
    figures([formatNumber(running), "running"], [formatNumber(queue), "waiting"]),
    facts(["Open requests", formatNumber(open)], ["Up for", formatSeconds(uptime)]),
  ];
}

function speedFigures({ tokens_per_s: now, tokens, speculation }, speeds) {
  const rows = [
    ["Tokens read since the start", formatCount(tokens.prompt)],
    ["Tokens written", formatCount(tokens.decoded)],
  ];
  if (speculation?.drafted) {
    const { accepted, drafted } = speculation;
    rows.push(["Drafts accepted", `${percent(accepted, drafted)} of ${formatCount(drafted)}`]);
  }
  return [
    figures([formatRate(now.decode), "tokens/s written"], [formatRate(now.prompt), "tokens/s read"]),
    sparkline(speeds.map(({ decode }) => decode)),
    facts(...rows),
  ];
}

/** The last minute as a line. */
function sparkline(values) {
  const most = Math.max(...values, 1);
  const point = (value, index) => `${(100 * (KEPT - values.length + index)) / (KEPT - 1)},${30 - (28 * value) / most}`;
  return drawing(
    "sparkline",
    "0 0 100 32",
    svg("path", { d: "M0 31.5H100", class: "base", "vector-effect": "non-scaling-stroke" }),
    svg("polyline", { points: values.map(point).join(" "), "vector-effect": "non-scaling-stroke" }),
  );
}

function cacheFigures({ pages, tokens }) {
  const ofRequests = pages.held - pages.prefix;
  return [
    figures(
      [percent(pages.held, pages.total), "of pages held"],
      [percent(tokens.cached, tokens.prompt), "of prompts reused"],
    ),
    pageBar(ofRequests, pages.prefix, pages.total),
    facts(
      ["Pages of requests", formatNumber(ofRequests)],
      ["Pages of finished texts", formatNumber(pages.prefix)],
      ["Pages in all", formatNumber(pages.total)],
    ),
  ];
}

function pageBar(held, prefix, total) {
  const part = (kind, x, width) => svg("rect", { class: kind, x, width, height: 8 });
  return drawing("page-bar", `0 0 ${total || 1} 8`, part("held", 0, held), part("prefix", held, prefix));
}

/** One row a layer, one cell an expert: the fuller its colour, the more often it is chosen. */
function expertPicture(layers) {
  const cells = layers.flatMap(({ counts }, y) => {
    const most = Math.max(...counts, 1);
    return counts.map((count, x) => {
      const opacity = (0.06 + (0.94 * count) / most).toFixed(3);
      return svg("rect", { x: x + 0.05, y: y + 0.05, width: 0.9, height: 0.9, rx: 0.15, "fill-opacity": opacity });
    });
  });
  const columns = Math.max(...layers.map(({ counts }) => counts.length));
  const label = "How often each expert is chosen; the list below names the busiest";
  return [
    h("p.hint", "A row is a layer, a cell an expert; the fuller its colour, the more often the router chooses it."),
    svg(
      "svg",
      { class: "experts", viewBox: `0 0 ${columns} ${layers.length}`, role: "img", "aria-label": label },
      cells,
    ),
  ];
}

function busiestExperts(layers) {
  const row = ({ layer, counts }) => {
    const most = Math.max(...counts);
    const total = counts.reduce((sum, count) => sum + count, 0) || 1;
    return [`Layer ${layer}`, `expert ${counts.indexOf(most)}, ${((100 * most) / total).toFixed(1)} %`];
  };
  return facts(...layers.map(row));
}
