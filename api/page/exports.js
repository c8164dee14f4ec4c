// Exports of an org: an order for the range that is shown, how far each one is, and the file.

import { fill, h } from "./dom.js";
import { count, rfc3339, short, stamp } from "./format.js";
import { failure } from "./parts.js";
import { ask, BASE } from "./rest.js";
import { hours, range, zone } from "./view.js";

const OPEN_MS = 1500;
const FORMATS = ["csv", "parquet", "focus-1.2", "focus-1.3"];
const LENGTHS = ["hourly", "daily", "weekly", "monthly"];

export function exportsPanel({ org, view, can, signal, say }) {
  let jobs = null;
  let error = null;
  let fault = null;
  let busy = false;
  let timer = null;
  const list = h("div", {});
  const told = h("div", {});
  const pick = (id, label, options) => h("label", { class: "pick", for: id }, h("span", {}, label), h("select", { id, name: id }, options.map((one) => h("option", { value: one }, one))));
  const form = can("analytics:exports:create") && h("form", { class: "toolbar", onsubmit: order, "aria-label": "Order an export" },
    pick("export-format", "Format", FORMATS), pick("export-length", "Rows", ["daily", ...LENGTHS.filter((one) => one !== "daily")]),
    h("button", { type: "submit", class: "main", id: "export-order" }, "Export this range"));
  const element = h("section", { class: "panel exports", id: "exports", "aria-labelledby": "exports-title" }, h("h2", { id: "exports-title" }, "Exports"), form, told, list);
  signal.addEventListener("abort", () => clearTimeout(timer));
  load();

  async function load() {
    clearTimeout(timer);
    if (!can("analytics:exports:read")) return fill(list, h("p", { class: "sub" }, "Seeing exports needs the role analytics:exports:read."));
    try {
      jobs = (await ask(`orgs/${org}/exports`, { limit: 10 }, { signal })).items;
      error = null;
    } catch (problem) {
      if (problem.name === "AbortError") return undefined;
      error = problem;
    }
    render();
    const open = jobs?.some((job) => job.status === "pending" || job.status === "running");
    if (open || error) timer = setTimeout(load, open ? OPEN_MS : 10_000);
    return undefined;
  }

  async function order(event) {
    event.preventDefault();
    if (busy) return;
    busy = true;
    const length = form.querySelector("#export-length").value;
    const { start, end } = hours(range(view()));
    const body = { timeRange: { start: rfc3339(start), end: rfc3339(end) }, granularity: length, format: form.querySelector("#export-format").value, timeZone: zone(view()) };
    try {
      const job = await ask(`orgs/${org}/exports`, {}, { method: "POST", body, signal, more: { "Idempotency-Key": crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` } });
      fault = null;
      jobs = [job, ...(jobs ?? [])];
      say("The export is ordered.");
    } catch (problem) {
      if (problem.name === "AbortError") return;
      fault = problem;
    } finally {
      busy = false;
    }
    render();
    load();
  }

  async function fetchFile(job) {
    try {
      const { url } = await ask(`orgs/${org}/exports/${job.jobId}/link`, {}, { signal });
      // A link of this server is relative to it, and a proxy's prefix stays; a link to a bucket is whole.
      const target = url.startsWith("/analytics/v1/") ? BASE + url.slice("/analytics/v1/".length) : url;
      const link = h("a", { href: target, download: "" });
      document.body.append(link);
      link.click();
      link.remove();
      fault = null;
    } catch (problem) {
      if (problem.name === "AbortError") return;
      fault = problem;
    }
    render();
  }

  function render() {
    const tz = zone(view());
    fill(told, fault && failure(fault));
    if (!jobs) return fill(list, error ? failure(error, load) : h("p", { class: "loading", role: "status" }, "Loading …"));
    if (jobs.length === 0) return fill(list, h("p", { class: "empty" }, "No export has been ordered yet."));
    return fill(list, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Exports: table" }, h("table", {},
      h("thead", {}, h("tr", {}, ["Range", "Rows", "Format", "State", "Size", "File"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, jobs.map((job) => h("tr", { "data-job": job.jobId },
        h("th", { scope: "row" }, `${stamp(Date.parse(job.timeRange.start), tz)} to ${stamp(Date.parse(job.timeRange.end), tz)}`, h("span", { class: "id" }, job.initiatedBy)),
        h("td", {}, job.granularity), h("td", {}, job.format),
        h("td", {}, state(job), job.error && h("span", { class: "sub" }, ` ${job.error}`)),
        h("td", {}, job.rowCount === null ? "–" : `${count(job.rowCount)} rows, ${short(job.byteCount ?? 0)}B`),
        h("td", {}, job.status === "succeeded" && can("analytics:exports:download")
          ? h("button", { type: "button", class: "quiet", id: `get-${job.jobId}`, onclick: () => fetchFile(job), "aria-label": `Download the ${job.format} of ${stamp(Date.parse(job.timeRange.start), tz)}` }, "Download") : "–")))))));
  }

  function state(job) {
    const open = job.status === "pending" || job.status === "running";
    const words = { pending: "waiting", running: "being made", succeeded: job.final ? "ready, final" : "ready, provisional", failed: "failed", expired: "expired" };
    return [open && h("progress", { "aria-label": "The export is being made" }), h("span", { class: `badge ${{ succeeded: "fresh", failed: "delayed" }[job.status] ?? ""}` }, words[job.status])];
  }

  return { element };
}
