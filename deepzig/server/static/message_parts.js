/** What chats and stories show alike. Called by chat.js and story.js; what happens on a click is app.js's business. */

import { asCurl } from "./api.js";
import { announce, toast } from "./announce.js";
import { button, copyText, fitHeight, h, iconButton, isComposing, textButton } from "./dom.js";
import { formatNumber, formatSeconds, statisticsLine } from "./figures.js";
import { requestFor } from "./generation.js";

/** ‹ 2 / 3 ›, if a message has several versions. */
export function versionSwitch(app, node, versions) {
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
  const { total, processed, cache, time_ms: time } = progress;
  const done = Math.min(processed, total);
  const left = done > cache && time > 2000 ? ((total - done) / (done - cache)) * (time / 1000) : 0;
  const text = `Reading the prompt: ${formatNumber(done)} of ${formatNumber(total)} tokens`;
  return waitingLine(
    left ? `${text}, about ${formatSeconds(left)} left` : text,
    h("progress", { max: total, value: done, "aria-label": "Prompt read" }),
  );
}

function waitingLine(text, bar) {
  return h("div.progress-line", h("span.pulse", { "aria-hidden": "true" }), h("span", text), bar);
}

/** Why an answer is not whole, and what can be done; null if it is. */
export function problemLine(app, node) {
  const isChat = app.conversation.mode === "chat";
  if (node.state === "failed") return failureLine(app, node);
  let text = null;
  if (node.state === "interrupted") text = "Interrupted: the page was closed before the end.";
  if (node.state === "stopped") text = node.content || node.reasoning ? "Stopped." : "Stopped before it began.";
  if (node.state === "done" && node.finish === "length" && isChat) text = "Cut off at the longest length.";
  const goOn = () => app.goOn(node);
  return text && h("p.note-line", `${text} `, isChat && node.content && textButton("Go on", goOn));
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
  const current = run?.speed ? { tokens: run.tokens, tokensPerSecond: run.speed } : {};
  return statisticsLine(run ? current : (node.stats ?? {}));
}

/** Replaces `element` by a field with its text until it is saved or left. */
export function editInPlace(element, text, label, onSave) {
  const onkeydown = (event) => {
    if (isComposing(event)) return;
    if (event.key === "Escape") (event.stopPropagation(), leave());
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  };
  const oninput = () => fitHeight(area);
  const area = h("textarea.edit-area", { "aria-label": label, value: text, oninput, onkeydown });
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
  element.replaceWith(box);
  fitHeight(area);
  area.focus();
}
