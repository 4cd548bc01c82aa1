/**
 * What chats and stories show alike: which version is shown, how far the prompt is, what went wrong. Called by chat.js
 * and story.js; what happens on a click is app.js's business.
 */

import { asCurl } from "./api.js";
import { announce, toast } from "./announce.js";
import { siblings } from "./conversations.js";
import { button, copyText, h, iconButton, isComposing } from "./dom.js";
import { formatNumber, formatSeconds, statisticsLine } from "./figures.js";
import { requestFor } from "./generation.js";

/** ‹ 2 / 3 ›, if a message has several versions. */
export function versionSwitch(app, node, versions = siblings(app.conversation, node)) {
  if (versions.length < 2) return null;
  const index = versions.indexOf(node);
  const step = (by, name, label) => {
    const go = () => {
      app.show(versions[index + by]);
      const fresh = document.getElementById(`versions-${node.parent}`); // none below a story whose end has one version
      (fresh?.querySelector(`[aria-label="${label}"]:enabled`) ?? fresh?.querySelector(":enabled"))?.focus();
      announce(`Version ${index + by + 1} of ${versions.length}`);
    };
    return iconButton(name, label, go, ".small", { disabled: !versions[index + by] });
  };
  return h(
    "span.versions",
    { id: `versions-${node.parent}`, role: "group", "aria-label": "Versions" },
    step(-1, "left", "Previous version"),
    h("span.versions-count", `${index + 1} / ${versions.length}`),
    step(1, "right", "Next version"),
  );
}

/** Queue and prompt: what happens before the first token. */
export function progressLine(run) {
  const { progress } = run;
  if (progress?.queue_position) return waitingLine(`Waiting: ${progress.queue_position} ahead of this one`);
  if (!progress?.total) return waitingLine("Waiting for the first token");
  const done = Math.min(progress.processed, progress.total);
  const read = done - progress.cache;
  const left =
    read > 0 && progress.time_ms > 2000 ? ((progress.total - done) / read) * (progress.time_ms / 1000) : null;
  const text = `Reading the prompt: ${formatNumber(done)} of ${formatNumber(progress.total)} tokens`;
  const line = waitingLine(left ? `${text}, about ${formatSeconds(left)} left` : text);
  line.append(h("progress", { max: progress.total, value: done, "aria-label": "Prompt read" }));
  return line;
}

function waitingLine(text) {
  return h("div.progress-line", h("span.pulse", { "aria-hidden": "true" }), h("span", text));
}

/** Why an answer is not whole, and what can be done; null if it is. */
export function problemLine(app, node) {
  if (node.state === "failed") return failureLine(app, node);
  if (node.state === "interrupted")
    return noteLine("Interrupted: the page was closed before the end.", goOn(app, node));
  if (node.state === "stopped")
    return noteLine(node.content || node.reasoning ? "Stopped." : "Stopped before it began.", goOn(app, node));
  if (node.state === "done" && node.finish === "length" && app.conversation.mode === "chat") {
    return noteLine("Cut off at the longest length.", goOn(app, node));
  }
  return null;
}

function goOn(app, node) {
  if (app.conversation.mode === "story" || !node.content) return null;
  return h("button.text-button", { onclick: () => app.goOn(node) }, "Go on");
}

function noteLine(text, action) {
  return h("p.note-line", text, action ? " " : null, action);
}

function failureLine(app, node) {
  const { message, requestId, retryAfter } = node.error;
  const copy = async () => {
    const { path, body } = requestFor(app.conversation, node, app.model);
    await copyText(`${message}\nrequest id: ${requestId ?? "none"}\n${asCurl(path, body)}`);
    toast("Copied the message, the request's id and a curl command without the key.");
  };
  return h(
    "div.problem",
    { role: "alert" },
    h("p", message, retryAfter ? ` Try again in ${retryAfter} s.` : ""),
    h(
      "div.button-row",
      button("Try again", () => app.regenerate(node)),
      app.model && button("Copy details", copy),
      requestId && h("code.request-id", requestId),
    ),
  );
}

/** Speed and size, or nothing yet. */
export function statisticsText(node, run) {
  if (run) return run.speed ? statisticsLine({ tokens: run.tokens, tokensPerSecond: run.speed }) : "";
  return node.stats ? statisticsLine(node.stats) : "";
}

/** Replaces `element` by a field with its text until it is saved or left. */
export function editInPlace(element, text, label, onSave) {
  const area = h("textarea.edit-area", { "aria-label": label });
  area.value = text;
  const grow = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`;
  };
  const save = () => (area.value.trim() && area.value !== text ? onSave(area.value) : leave());
  const before = document.activeElement;
  const leave = () => (box.replaceWith(element), before.focus());
  const box = h(
    "div.edit-box",
    area,
    h(
      "div.button-row.end",
      h("span.hint", "The old version is kept."),
      button("Cancel", leave),
      button("Save", save, ".primary"),
    ),
  );
  area.addEventListener("input", grow);
  area.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    if (event.key === "Escape") (event.stopPropagation(), leave());
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  });
  element.replaceWith(box);
  grow();
  area.focus();
}
