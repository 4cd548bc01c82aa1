/**
 * One answer: sends the request, follows the stream, and fills the message. Called by app.js; calls api.js.
 *
 * A `Run` is what is known while the answer is made; the message keeps what is worth keeping after it.
 */

import { ApiError, stream } from "./api.js";
import { asMessages, asText, pathTo } from "./conversations.js";
import { readSettings, samplingFields } from "./settings.js";

const STORY_TOKENS = 200; // a passage, after which the reader decides how to go on
const CHARS_PER_TOKEN = 3; // fewer than any tokenizer of the family has in prose

/** An answer in the making. */
export class Run {
  controller = new AbortController();
  started = performance.now();
  firstToken = null; // ms, as performance.now()
  lastToken = null;
  thoughtUntil = null; // when text began after thoughts
  tokens = 0;
  progress = null; // of the prompt: {total, cache, processed, time_ms, queue_position}
  usage = null;
  timings = null;

  constructor(conversation, node) {
    this.conversation = conversation;
    this.node = node;
  }

  get isThinking() {
    return this.firstToken !== null && this.node.reasoning !== "" && this.thoughtUntil === null;
  }

  /** Tokens a second since the first one, or null. */
  get speed() {
    const seconds = (this.lastToken - this.firstToken) / 1000;
    return this.tokens > 1 && seconds > 0 ? (this.tokens - 1) / seconds : null;
  }

  stop() {
    this.controller.abort();
  }
}

/** The address and body of the request for `node`, an answer with an empty or, to be continued, unfinished text. */
export function requestFor(conversation, node, model) {
  const streaming = { stream: true, stream_options: { include_usage: true }, return_progress: true };
  const fields = { model: model.id, ...samplingFields(), ...streaming };
  const path = pathTo(conversation, node);
  if (conversation.mode === "story") {
    const prompt = fitting(path, model.contextLength);
    return { path: "v1/completions", body: { max_tokens: STORY_TOKENS, ...fields, prompt } };
  }
  const settings = readSettings();
  const messages = asMessages(path.slice(0, -1), settings.system);
  if (node.content) messages.push({ role: "assistant", content: node.content, prefix: true });
  const body = { ...fields, messages };
  if (settings.format === "json") body.response_format = { type: "json_object" };
  if (model.hasThinking && settings.thinking) body.chat_template_kwargs = { thinking: settings.thinking === "on" };
  return { path: "v1/chat/completions", body };
}

/** The story so far or, if there is no room for another passage, its second half from the start of a sentence. */
export function fitting(path, contextLength) {
  const text = asText(path);
  // Of the last answer, if there is one.
  const charsPerToken = path.findLast((node) => node.stats?.charsPerToken)?.stats.charsPerToken ?? CHARS_PER_TOKEN;
  if (text.length / charsPerToken + STORY_TOKENS <= contextLength) return text;
  const cut = text.slice(-Math.floor((contextLength / 2) * charsPerToken));
  const end = cut.replace(/^[\udc00-\udfff]/, ""); // half of a character, which no server reads
  const sentence = /[.!?]["”]?\s+/.exec(end);
  return sentence ? end.slice(sentence.index + sentence[0].length) : end;
}

/** Follows the answer to its end and fills `run.node`; `onChange` is called after every piece. Raises nothing. */
export async function follow(run, { path, body }, onChange) {
  const { node } = run;
  node.state = "streaming";
  delete node.error;
  onChange();
  try {
    for await (const chunk of stream(path, body, run.controller.signal)) {
      take(run, chunk);
      onChange();
    }
    node.state = "done";
  } catch (error) {
    fail(node, error);
  }
  node.stats = statistics(run, body.prompt);
  onChange();
}

function take(run, chunk) {
  const { node } = run;
  if (chunk.prompt_progress) run.progress = chunk.prompt_progress;
  if (chunk.usage) run.usage = chunk.usage;
  if (chunk.timings) run.timings = chunk.timings;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const reasoning = choice.delta?.reasoning_content ?? "";
  const text = choice.text ?? choice.delta?.content ?? "";
  if (reasoning || text) {
    const now = performance.now();
    run.firstToken ??= now;
    run.lastToken = now;
    run.tokens++;
    if (text && node.reasoning && run.thoughtUntil === null) run.thoughtUntil = now;
  }
  node.reasoning += reasoning;
  node.content += text;
  if (choice.finish_reason) node.finish = choice.finish_reason;
}

function fail(node, error) {
  node.state = error.name === "AbortError" ? "stopped" : "failed";
  if (node.state === "stopped") return;
  if (!(error instanceof ApiError)) console.error(error);
  const { message, status, requestId, retryAfter } = error;
  node.error = { message, status, requestId, retryAfter };
}

/** What the line below an answer tells: the server's figures if it gave them, else what was seen from here. */
function statistics(run, prompt) {
  const { usage, timings } = run;
  const stats = { tokens: usage?.completion_tokens ?? run.tokens };
  if (run.firstToken !== null) stats.firstTokenS = (run.firstToken - run.started) / 1000;
  if (run.thoughtUntil !== null) stats.thoughtS = (run.thoughtUntil - run.firstToken) / 1000;
  const speed = timings?.predicted_per_second ?? run.speed;
  if (speed) stats.tokensPerSecond = speed;
  if (usage) {
    stats.promptTokens = usage.prompt_tokens;
    stats.cachedTokens = usage.prompt_tokens_details?.cached_tokens ?? 0;
    stats.contextTokens = usage.total_tokens;
    if (prompt) stats.charsPerToken = (prompt.length + run.node.content.length) / usage.total_tokens;
  }
  return stats;
}
