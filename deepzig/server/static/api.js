/**
 * Talks to the server: JSON requests, streams of server-sent events, errors, the API key.
 *
 * Knows nothing of conversations or of the page. The key lives in sessionStorage: it ends with the tab and is in no
 * export.
 */

const BASE = new URL("../", import.meta.url); // works below a path too
const KEY = "deepzig.key";
const keys = sessionOrPage();

/** A request that failed, with what a person needs to report it. */
export class ApiError extends Error {
  status = 0; // the server could not be reached
  requestId = null;
  retryAfter = null; // seconds, if the server says when to try again

  constructor(message, details) {
    super(message);
    Object.assign(this, details);
  }
}

/** sessionStorage or, where it is forbidden, a place that lasts as long as the page. */
function sessionOrPage() {
  try {
    return sessionStorage;
  } catch {
    return {};
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
    delete keys[KEY];
    asking ??= askForKey(attempt > 0).finally(() => (asking = null));
    const key = await asking;
    if (!key) throw error;
    keys[KEY] = key;
  }
}

async function fetchOnce(path, body, signal) {
  const key = keys[KEY];
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, cache: "no-store", credentials: "omit" };
  if (body) {
    headers["content-type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  try {
    return await fetch(new URL(path, BASE), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is deepzig still running?");
  }
}

async function errorOf(response) {
  const { status, headers } = response;
  const retryAfter = Number(headers.get("retry-after")) || null;
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server answered with status ${status}.`;
  return new ApiError(message, { status, requestId: headers.get("x-request-id"), retryAfter });
}

/** A JSON reply. Raises ApiError, also when the server cannot be reached. */
export async function getJson(path, options) {
  return (await send(path, options)).json();
}

/** The chunks of a streamed reply, in order. Raises ApiError, also for an error in mid-stream; aborts with `signal`. */
export async function* stream(path, body, signal) {
  const response = await send(path, { body, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error)
      throw new ApiError(chunk.error.message, { status: 500, requestId: response.headers.get("x-request-id") });
    yield chunk;
  }
  brokenOff();
}

/** Raises what a stream without an end means, or AbortError if the page has ended it. */
function brokenOff(error) {
  throw error?.name === "AbortError" ? error : new ApiError("The connection ended before the answer did.");
}

/** The data of each event of a stream of bytes; comments, such as keep-alives, are left out. */
async function* events(bytes) {
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
