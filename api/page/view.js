// What is shown, as the address says it: `#/` is all orgs, `#/orgs/{id}?last=7d&by=model` is one org. The address is the
// only state, so a link that somebody sends shows the same view, and Back goes back.

import { clock, dayStart, instant, monthStart } from "./format.js";
import { now } from "./rest.js";

export const PRESETS = [
  ["1h", "Last hour"], ["24h", "Last 24 hours"], ["7d", "Last 7 days"], ["30d", "Last 30 days"],
  ["today", "Today"], ["mtd", "Month to date"], ["90d", "Last 90 days"], ["12m", "Last 12 months"], ["custom", "Custom range"],
];
export const GRANULARITIES = ["minute", "hour", "day", "week", "month"];
const MINUTE = 60_000;
const HOUR = 3_600_000;
const DAY = 86_400_000;
const DEFAULTS = { last: "24h", by: "model", grain: "auto", compare: "", tz: "" };

export function read() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  const given = new URLSearchParams(query);
  const org = /^\/orgs\/([0-9a-fA-F-]{36})$/.exec(path)?.[1] ?? null;
  return { org, given };
}

export const get = (view, name) => view.given.get(name) ?? DEFAULTS[name] ?? "";

export function address(org, values) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value !== null && value !== undefined && value !== "" && value !== DEFAULTS[name]) given.set(name, value);
  }
  const query = given.toString();
  return `#/${org ? `orgs/${org}` : ""}${query ? `?${query}` : ""}`;
}

// The address of this view with some values changed.
export function changed(view, values, org = view.org) {
  return address(org, { ...Object.fromEntries(view.given), ...values });
}

export const browserZone = () => Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

export function zone(view) {
  const wanted = get(view, "tz") || "UTC";
  try {
    new Intl.DateTimeFormat("en", { timeZone: wanted });
    return wanted;
  } catch {
    return "UTC";
  }
}

// The range of a view in milliseconds, [start, end). Ranges of more than an hour begin and end on whole hours, because
// figures by client exist from the hour grain up, and old minutes are not kept.
export function range(view, at = now()) {
  const tz = zone(view);
  const last = get(view, "last");
  const minuteAfter = Math.floor(at / MINUTE + 1) * MINUTE;
  const hourAfter = Math.floor(at / HOUR + 1) * HOUR;
  if (last === "custom") {
    const start = local(view.given.get("start"), tz) ?? dayStart(at, tz, -1);
    const end = local(view.given.get("end"), tz) ?? dayStart(at, tz);
    return end > start ? { start, end } : { start, end: start + HOUR };
  }
  if (last === "1h") return { start: minuteAfter - HOUR, end: minuteAfter };
  if (last === "today") return { start: dayStart(at, tz), end: minuteAfter };
  if (last === "mtd") return { start: monthStart(at, tz), end: minuteAfter };
  if (last === "12m") {
    const { year, month, day } = clock(at, tz);
    return { start: instant({ year: year - 1, month, day }, tz), end: hourAfter };
  }
  const days = { "7d": 7, "30d": 30, "90d": 90 }[last];
  return days ? { start: dayStart(at, tz, -days + 1), end: hourAfter } : { start: hourAfter - DAY, end: hourAfter };
}

// The clock of the range's start and end as a person has typed it: 2026-11-30T14:00, in the zone of the view.
function local(text, tz) {
  const found = /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d)$/.exec(text ?? "");
  if (!found) return null;
  const [year, month, day, hour, minute] = found.slice(1).map(Number);
  return instant({ year, month, day, hour, minute }, tz);
}

export const sinceMidnight = (at, tz) => dayStart(at, tz);

// The range of the same length that ends where this one starts.
export const before = ({ start, end }) => ({ start: start - (end - start), end: start });

export function grain(view, { start, end }) {
  const wanted = get(view, "grain");
  const length = end - start;
  const by = get(view, "by");
  const minutes = length <= DAY && (by === "model" || by === "none");
  if (wanted === "minute" && !minutes) return "hour";
  if (wanted === "hour" && length > 62 * DAY) return "day";
  if (GRANULARITIES.includes(wanted)) return wanted;
  if (length <= 3 * HOUR && minutes) return "minute";
  return length <= 4 * DAY ? "hour" : length <= 100 * DAY ? "day" : "week";
}

// Whole hours around a range: what figures by client and dimension need.
export function hours({ start, end }) {
  return { start: Math.floor(start / HOUR) * HOUR, end: Math.ceil(end / HOUR) * HOUR };
}
