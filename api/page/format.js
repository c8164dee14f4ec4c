// How figures and times read. Money stays exact: amounts come as decimal texts and are added as whole numbers of
// 10^-20 dollars, never as floats. A float is good enough for the height of a bar, and for nothing else.

const PLACES = 20;
const ONE = 10n ** BigInt(PLACES);

// "-12.5" -> -1250000000000000000000n. None (null) stays null: an amount that nobody knows is not zero.
export function exact(amount) {
  if (amount === null || amount === undefined) return null;
  const [, sign, whole, part = ""] = /^(-?)(\d+)(?:\.(\d+))?$/.exec(amount);
  const value = BigInt(whole) * ONE + BigInt(part.slice(0, PLACES).padEnd(PLACES, "0"));
  return sign ? -value : value;
}

export function add(a, b) {
  return a === null ? b : b === null ? a : a + b;
}

// Every digit that counts, at least two: what a file or a tooltip says.
export function digits(value) {
  if (value === null) return "";
  const size = value < 0n ? -value : value;
  const part = String(size % ONE).padStart(PLACES, "0").replace(/0+$/, "").padEnd(2, "0");
  return `${value < 0n ? "-" : ""}${size / ONE}.${part}`;
}

// Dollars as people read them: cents, and more digits where cents would hide the amount. Half a unit is rounded to
// the even one, as the API rounds.
export function dollars(value) {
  if (value === null) return "unknown";
  const size = value < 0n ? -value : value;
  const places = size !== 0n && size < ONE ? 4 : 2;
  const unit = 10n ** BigInt(PLACES - places);
  let units = size / unit;
  const twice = (size % unit) * 2n;
  if (twice > unit || (twice === unit && units % 2n === 1n)) units += 1n;
  if (size !== 0n && units === 0n) return `${value < 0n ? "-" : ""}< $0.0001`;
  const scale = 10n ** BigInt(places);
  const text = `${group(units / scale)}.${String(units % scale).padStart(places, "0")}`;
  return `${value < 0n ? "-" : ""}$${text}`;
}

export const number = (value) => (value === null ? 0 : Number(value / 10n ** 12n) / 1e8);

const GROUPS = new Intl.NumberFormat("en-US");
const group = (value) => GROUPS.format(value);
export const count = (value) => (value === null || value === undefined ? "–" : group(value));

const SHORT = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
export const short = (value) => SHORT.format(value);

export function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = share * 100;
  return `${value === 0 ? "0" : value < 0.1 ? value.toFixed(3) : value < 10 ? value.toFixed(2) : value.toFixed(1)} %`;
}

export function millis(value) {
  if (value === null || value === undefined) return "–";
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)} s`;
}

export function age(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  const value = Math.max(0, seconds);
  if (value < 90) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  if (value < 172_800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86_400)} days`;
}

// The change from one figure to another: "+12.3 %". Null where there was nothing to compare with.
export function change(now, before) {
  if (before === null || now === null || before === 0) return null;
  const share = (now - before) / before;
  return `${share >= 0 ? "+" : "−"}${Math.abs(share * 100).toFixed(Math.abs(share) < 0.1 ? 1 : 0)} %`;
}

// --- times and zones ---------------------------------------------------------------------------------

const formats = new Map();

function format(zone, options) {
  const key = `${zone}|${JSON.stringify(options)}`;
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat("en-GB", { timeZone: zone, ...options }));
  return formats.get(key);
}

const PARTS = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };

// The clock of a zone at an instant (milliseconds): {year, month, day, hour, minute, second}.
export function clock(at, zone) {
  const found = {};
  for (const { type, value } of format(zone, PARTS).formatToParts(at)) if (type !== "literal") found[type] = Number(value);
  return found;
}

// The instant at which the clock of a zone shows this. In the hour that a change of the clock leaves out, the instant
// after the change.
export function instant({ year, month, day, hour = 0, minute = 0 }, zone) {
  const wanted = Date.UTC(year, month - 1, day, hour, minute);
  let at = wanted;
  for (let round = 0; round < 3; round += 1) {
    const shown = clock(at, zone);
    const off = wanted - Date.UTC(shown.year, shown.month - 1, shown.day, shown.hour, shown.minute);
    if (off === 0) break;
    at += off;
  }
  return at;
}

export function dayStart(at, zone, days = 0) {
  const { year, month, day } = clock(at, zone);
  const shifted = new Date(Date.UTC(year, month - 1, day + days));
  return instant({ year: shifted.getUTCFullYear(), month: shifted.getUTCMonth() + 1, day: shifted.getUTCDate() }, zone);
}

export function monthStart(at, zone) {
  const { year, month } = clock(at, zone);
  return instant({ year, month, day: 1 }, zone);
}

const two = (value) => String(value).padStart(2, "0");

// "2026-11-30 14:05" in a zone: what tables, files and inputs show.
export function stamp(at, zone, { seconds = false, date = true, time = true } = {}) {
  const c = clock(at, zone);
  const day = date ? `${c.year}-${two(c.month)}-${two(c.day)}` : "";
  const hour = time ? `${two(c.hour)}:${two(c.minute)}${seconds ? `:${two(c.second)}` : ""}` : "";
  return [day, hour].filter(Boolean).join(" ");
}

export function bucket(at, zone, granularity) {
  if (granularity === "month") return format(zone, { month: "short", year: "numeric" }).format(at);
  if (granularity === "day" || granularity === "week") {
    return format(zone, { weekday: "short", day: "numeric", month: "short" }).format(at);
  }
  return format(zone, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" }).format(at);
}

export const rfc3339 = (at) => new Date(at).toISOString().replace(/\.\d+Z$/, "Z");

// What a spreadsheet would run as a formula gets an apostrophe, by the rule of the API's own files (see
// api/exports/cells.py): also behind blanks and quotes, and behind the separators of other spreadsheets.
const RUNS = "(?=[\\s\\u0000-\\u001f\\u007f-\\u009f\\u00ad\\u180e\\u200b-\\u200f\\u202a-\\u202e\\u2060-\\u2064\"']*[-=+@|%＝＋－＠])";
const BEHIND = new RegExp(`([,;|\\t\\r\\n\\v\\f\\u0085\\u2028\\u2029"'])${RUNS}`, "g");
const FIRST = new RegExp(`^${RUNS}`);
export const defused = (text) => text.replace(BEHIND, "$1'").replace(FIRST, "'");

// A cell of a CSV. An amount below zero stays a number.
export function cell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  const safe = /^-?\d+(\.\d+)?$/.test(text) ? text : defused(text);
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

export const csv = (rows) => rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
