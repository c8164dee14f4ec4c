// Small parts that several views share.

import { h } from "./dom.js";
import { age, stamp } from "./format.js";
import { now } from "./rest.js";

// Why a view or a section has no figures, with the id under which the server's log has the request.
export function failure(error, again) {
  return h("div", { class: "panel failure", role: "alert" },
    h("h2", {}, { 0: "The server is away", 403: "Not yours to see", 404: "Nothing here", 503: "A dependency of the server is away" }[error.status] ?? "That did not work"),
    h("p", {}, error.message),
    error.requestId && h("p", { class: "sub" }, "Request ", h("code", {}, error.requestId)),
    again && h("button", { type: "button", class: "main", onclick: again }, "Try again"));
}

// Figures that are older than they should be, because the server or its database is away.
export function degraded(error, loadedAt, tz) {
  return h("div", { class: "banner warn", role: "status" },
    h("strong", {}, "These figures are old. "),
    `They are of ${stamp(loadedAt, tz, { seconds: true, date: false })}, ${age((now() - loadedAt) / 1000)} ago: `, error.message, " The page goes on asking.",
    error.requestId && [" Request ", h("code", {}, error.requestId), "."]);
}

export function name(point) {
  if (point.modelName) return point.provider ? `${point.provider} / ${point.modelName}` : point.modelName;
  return point.modelId ?? "all";
}

const OVERFLOW = 128;
export function groupName(by, point) {
  if (by === "model") return name(point);
  if (by === "none") return "All calls";
  const [id, called] = by === "client" ? [point.clientId, point.clientName] : [point.value, point.valueName];
  if (called) return called;
  if (id === null) return `without ${by}`;
  return id.length > OVERFLOW ? "beyond the most that are counted by name" : id;
}

export const groupKey = (by, point) => (by === "model" ? point.modelId : by === "none" ? "" : by === "client" ? point.clientId : point.value) ?? "";

// A debounce with a first call at once: at most one call each `gapMs`, and none is lost.
export function spaced(work, gapMs) {
  let last = 0;
  let timer = null;
  const run = () => { last = Date.now(); timer = null; work(); };
  const call = () => {
    if (timer !== null) return;
    const wait = last + gapMs - Date.now();
    if (wait <= 0) run();
    else timer = setTimeout(run, wait);
  };
  call.end = () => clearTimeout(timer);
  return call;
}
