// What is asked for: range, length of a bucket, what figures are split by, time zone, comparison.

import { h } from "./dom.js";
import { stamp } from "./format.js";
import { browserZone, get, grain, GRANULARITIES, PRESETS, range, zone } from "./view.js";

const QUICK = ["1h", "24h", "7d", "30d", "mtd"];

function select(id, label, chosen, options, change) {
  return h("label", { class: "pick", for: id }, h("span", {}, label),
    h("select", { id, onchange: (event) => change(event.target.value) },
      options.map(([value, text]) => h("option", { value, selected: value === chosen }, text))));
}

export function zoneSelect(view, change) {
  const chosen = zone(view);
  const known = [...new Set(["UTC", browserZone(), chosen, "America/New_York", "America/Los_Angeles", "Europe/London", "Europe/Berlin", "Asia/Kolkata", "Asia/Tokyo", "Australia/Sydney"])];
  const every = Intl.supportedValuesOf?.("timeZone") ?? [];
  const more = every.filter((name) => !known.includes(name));
  return h("label", { class: "pick", for: "tz" }, h("span", {}, "Time zone"),
    h("select", { id: "tz", onchange: (event) => change(event.target.value === "UTC" ? "" : event.target.value) },
      known.map((name) => h("option", { value: name, selected: name === chosen }, name)),
      more.length > 0 && h("optgroup", { label: "All zones" }, more.map((name) => h("option", { value: name }, name)))));
}

export function toolbar(view, dimensions, go) {
  const tz = zone(view);
  const last = get(view, "last");
  const span = range(view);
  const by = get(view, "by");
  const groups = [["model", "Model"], ["client", "Client"], ...dimensions.map((one) => [one.name, one.name]), ["none", "Nothing"]];
  const quick = h("div", { class: "segments", role: "group", "aria-label": "Range" },
    QUICK.map((id) => h("button", { type: "button", id: `last-${id}`, "aria-pressed": String(last === id), onclick: () => go({ last: id, start: "", end: "" }) },
      id === "mtd" ? "Month" : id)));
  const clock = (at) => stamp(at, tz).replace(" ", "T");
  const custom = last === "custom" && h("form", {
    class: "custom",
    onsubmit: (event) => {
      event.preventDefault();
      const form = new FormData(event.target);
      go({ last: "custom", start: form.get("start"), end: form.get("end") });
    },
  },
  h("label", { for: "start" }, "From", h("input", { type: "datetime-local", id: "start", name: "start", value: clock(span.start), required: true })),
  h("label", { for: "end" }, "To", h("input", { type: "datetime-local", id: "end", name: "end", value: clock(span.end), required: true })),
  h("button", { type: "submit", class: "quiet", id: "custom-go" }, "Show"));
  return h("div", { class: "toolbar picks" },
    quick,
    select("last", "Range", last, PRESETS, (value) => go(value === "custom" ? { last: value, start: clock(span.start), end: clock(span.end) } : { last: value, start: "", end: "" })),
    select("grain", "Buckets", GRANULARITIES.includes(get(view, "grain")) ? grain(view, span) : "auto",
      [["auto", `Auto (${grain(view, span)})`], ...GRANULARITIES.map((name) => [name, name[0].toUpperCase() + name.slice(1)])], (value) => go({ grain: value })),
    select("by", "Split by", by, groups, (value) => go({ by: value })),
    zoneSelect(view, (value) => go({ tz: value })),
    h("label", { class: "check", for: "compare" }, h("input", { type: "checkbox", id: "compare", checked: get(view, "compare") === "1", onchange: (event) => go({ compare: event.target.checked ? "1" : "" }) }), "Compare with the period before"),
    custom);
}
