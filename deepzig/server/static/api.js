/**
 * Talks to the server: JSON requests, streams of server-sent events, errors, the API key.
 *
 * Called by generation.js, status.js and app.js. Knows nothing of conversations or of the page. The key lives in
 * sessionStorage: it ends with the tab and is in no export.
 */

const BASE = new URL("../", import.meta.url); // works below a path too
const KEY = "deepzig.key";
const keys = sessionOrPage();

/** A request that failed, with what a person needs to report it. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, requestId = null, retryAfter = null } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status; // 0: the server could not be reached
    this.code = code;
    this.requestId = requestId;
    this.retryAfter = retryAfter; // seconds, if the server says when to try again
  }
}

/** sessionStorage or, where the browser forbids it, a place that lasts as long as the page. */
function sessionOrPage() {
  try {
    return sessionStorage;
  } catch {
    const kept = new Map();
    return { getItem: (k) => kept.get(k), setItem: (k, value) => kept.set(k, value), removeItem: (k) => kept.delete(k) };
  }
}

let askForKey = async () => null;

/** `ask` shows the prompt for a key after a 401 and returns the key, or null if the user has none. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

let asking = null; // several requests that fail together ask once

async function send(path, { body, signal } = {}) {
  for (let attempt = 0; ; attempt++) {
    const response = await fetchOnce(path, body, signal);
    if (response.ok) return response;
    const error = await errorOf(response);
    if (error.status !== 401) throw error;
    keys.removeItem(KEY);
    asking ??= askForKey(attempt > 0).finally(() => (asking = null));
    const key = await asking;
    if (!key) throw error;
    keys.setItem(KEY, key);
  }
}

async function fetchOnce(path, body, signal) {
  const headers = {};
  const key = keys.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    return await fetch(new URL(path, BASE), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is deepzig still running?");
  }
}

async function errorOf(response) {
  const details = {
    status: response.status,
    requestId: response.headers.get("x-request-id"),
    retryAfter: Number(response.headers.get("retry-after")) || null,
  };
  try {
    const { error } = await response.json();
    return new ApiError(error.message, { ...details, code: error.code });
  } catch {
    return new ApiError(`The server answered with status ${response.status}.`, details);
  }
}

/** A JSON reply. Raises ApiError, also when the server cannot be reached. */
export async function getJson(path, options) {
  return (await send(path, options)).json();
}

/** The chunks of a streamed reply, in order. Raises ApiError, also for an error in mid-stream; aborts with `signal`. */
export async function* stream(path, body, signal) {
  const response = await send(path, { body, signal });
  let isComplete = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      isComplete = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) {
      const { message, code } = chunk.error;
      throw new ApiError(message, { status: 500, code, requestId: response.headers.get("x-request-id") });
    }
    yield chunk;
  }
  if (!isComplete) brokenOff();
}

/** Raises what a stream without an end means, or AbortError if the page has ended it. */
function brokenOff(error) {
  throw error?.name === "AbortError" ? error : new ApiError("The connection ended before the answer did.");
}

/** The data of each event of a stream of bytes; comments, such as keep-alives, are left out. */
export async function* events(bytes) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  const data = [];
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(brokenOff);
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((line) => line.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) yield data.splice(0).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection may be gone already
  }
}

/** The same request for a terminal, without the key. */
export function asCurl(path, body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const headers = "-H 'content-type: application/json' -H 'authorization: Bearer KEY'";
  return `curl ${new URL(path, BASE)} ${headers} -d '${quoted}'`;
}
