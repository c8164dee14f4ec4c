// All orgs: what each spends today and this month, its errors and its freshness. The list is asked for as a whole,
// up to a bound, so that search and sorting are of all orgs; lines of the last days are asked for as they come in sight.

import { fill, h, sparkline } from "./dom.js";
import { age, count, dayStart, digits, dollars, exact, monthStart, number, percent, rfc3339, stamp } from "./format.js";
import { saveFile } from "./files.js";
import { degraded, failure } from "./parts.js";
import { all, ask, now } from "./rest.js";
import { changed, get, zone } from "./view.js";
import { zoneSelect } from "./toolbar.js";

const ORGS_MAX = 5000;
const PAGE = 25;
const EVERY_MS = 10_000;
const LINE_DAYS = 14;
const COLUMNS = [
  ["name", "Org", (row) => row.name.toLowerCase()],
  ["line", `Last ${LINE_DAYS} days`, null],
  ["today", "Spend today", (row) => number(row.today)],
  ["month", "Month to date", (row) => number(row.month)],
  ["requests", "Requests this month", (row) => row.requests],
  ["errors", "Errors", (row) => row.errorRate ?? -1],
  ["fresh", "Freshness", (row) => row.lag ?? 1e12],
];

export function orgsView(first, context) {
  let view = first;
  let rows = null;
  let cut = false;
  let loadedAt = null;
  let error = null;
  let stop = new AbortController();
  const lines = new Map();
  const body = h("div", {});
  const status = h("div", {});
  const search = h("input", {
    type: "search", id: "search", placeholder: "Name or id", value: get(view, "q"), "aria-label": "Search orgs",
    oninput: () => go({ q: search.value, page: "" }, true),
  });
  const element = h("div", { class: "view orgs" },
    h("div", { class: "toolbar" }, h("h1", {}, "All orgs"), search, h("span", { id: "zone" }),
      h("button", { type: "button", class: "quiet", id: "orgs-csv", onclick: download, "aria-label": "All orgs: CSV of what is shown" }, "CSV")),
    status, body);
  context.title("All orgs");
  render();
  load();
  const timer = setInterval(load, EVERY_MS);

  function go(values, quietly) {
    const address = changed(view, values, null);
    if (quietly) {
      history.replaceState(null, "", address);
      change({ ...view, given: new URLSearchParams(address.split("?")[1] ?? "") });
    } else location.hash = address.slice(1);
  }

  async function load() {
    stop.abort();
    stop = new AbortController();
    const { signal } = stop;
    const tz = zone(view);
    const at = now();
    const end = rfc3339(Math.floor(at / 60_000 + 1) * 60_000);
    try {
      const [month, today] = await Promise.all([monthStart(at, tz), dayStart(at, tz)].map((start) =>
        all("orgs", { start: rfc3339(start), end }, ORGS_MAX, { signal })));
      const ofToday = new Map(today.items.map((item) => [item.orgId, item]));
      rows = month.items.map((item) => row(item, ofToday.get(item.orgId)));
      cut = month.cut;
      loadedAt = at;
      error = null;
    } catch (fault) {
      if (fault.name === "AbortError") return;
      if (fault.status === 401) return context.refused(fault);
      error = fault;
    }
    render();
  }

  function row(item, today) {
    return {
      id: item.orgId,
      name: item.orgName ?? item.orgId,
      named: item.orgName !== null,
      today: exact(today?.cost.amount ?? null),
      callsToday: today?.invocations ?? 0,
      month: exact(item.cost.amount),
      requests: item.invocations,
      unpriced: item.unpriced.invocations,
      errorRate: item.errorRate,
      status: item.freshness.status,
      lag: item.freshness.lagSeconds,
      counted: item.freshness.countedThrough,
    };
  }

  function chosen() {
    const wanted = get(view, "q").trim().toLowerCase();
    const [by, way] = (get(view, "sort") || "month-down").split("-");
    const key = COLUMNS.find(([id]) => id === by)?.[2] ?? COLUMNS[3][2];
    const found = rows.filter((one) => !wanted || one.name.toLowerCase().includes(wanted) || one.id.includes(wanted));
    const sign = way === "up" ? 1 : -1;
    return found.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return (x < y ? -sign : x > y ? sign : 0) || (a.id < b.id ? -1 : 1);
    });
  }

  function render() {
    fill(element.querySelector("#zone"), zoneSelect(view, (tz) => go({ tz })));
    if (rows === null && error?.status === 403 && context.caller.orgs?.length > 0) {
      fill(status, h("p", { class: "sub" }, "Figures of several orgs at once need the role analytics:admin."));
      fill(body, h("ul", { class: "panel links" }, context.caller.orgs.map((id) => h("li", {}, h("a", { href: `#/orgs/${id}`, id: `org-${id}` }, id)))));
      return;
    }
    if (rows === null) {
      fill(body, error ? failure(error, load) : h("p", { class: "loading", role: "status" }, "Loading …"));
      return;
    }
    fill(status, error && degraded(error, loadedAt, zone(view)), cut && h("div", { class: "banner", role: "status" },
      `The first ${count(rows.length)} orgs by id are listed. Search and sorting are of these; the API lists all.`));
    const found = chosen();
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    const page = Math.min(Math.max(1, Number(get(view, "page")) || 1), pages);
    const shown = found.slice((page - 1) * PAGE, page * PAGE);
    const total = rows.reduce((sum, one) => (one.month === null ? sum : sum + one.month), 0n);
    fill(body,
      h("p", { class: "sub" }, `${count(found.length)} of ${count(rows.length)} orgs · ${dollars(total)} this month in all`),
      rows.length === 0 ? h("p", { class: "panel empty" }, "No event has been counted yet. Publish one, and its org stands here a second later.")
        : found.length === 0 ? h("p", { class: "panel empty" }, `No org's name or id has “${get(view, "q")}” in it.`)
          : h("div", { class: "panel scroll", tabindex: 0, role: "region", "aria-label": "Orgs" }, table(shown)),
      pages > 1 && h("nav", { class: "pages", "aria-label": "Pages" },
        h("button", { type: "button", class: "quiet", id: "page-before", disabled: page === 1, onclick: () => go({ page: page - 1 }) }, "Before"),
        h("span", {}, `Page ${page} of ${pages}`),
        h("button", { type: "button", class: "quiet", id: "page-next", disabled: page === pages, onclick: () => go({ page: page + 1 }) }, "Next")));
    for (const one of shown) if (!lines.has(one.id)) line(one.id);
  }

  function table(shown) {
    const [by, way] = (get(view, "sort") || "month-down").split("-");
    const head = COLUMNS.map(([id, text, key]) => h("th", { scope: "col", "aria-sort": by === id ? (way === "up" ? "ascending" : "descending") : null, class: id === "name" || id === "line" || id === "fresh" ? "" : "figure" },
      key ? h("button", { type: "button", id: `sort-${id}`, onclick: () => go({ sort: `${id}-${by === id && way === "down" ? "up" : by === id ? "down" : id === "name" ? "up" : "down"}`, page: "" }) },
        text, h("span", { "aria-hidden": "true", class: "way" }, by === id ? (way === "up" ? "▲" : "▼") : "")) : text));
    return h("table", { class: "orgs" }, h("caption", { class: "unseen" }, "Orgs with their spend, errors and freshness"),
      h("thead", {}, h("tr", {}, head)),
      h("tbody", {}, shown.map((one) => h("tr", { "data-org": one.id },
        h("th", { scope: "row" }, h("a", { href: changed(view, { q: "", sort: "", page: "" }, one.id), id: `org-${one.id}` }, one.name), one.named && h("span", { class: "id" }, one.id.slice(0, 8))),
        h("td", {}, h("span", { class: "line-of", "data-line": one.id }, lines.get(one.id)?.cloneNode(true) ?? null)),
        h("td", { class: "figure" }, one.callsToday === 0 ? "–" : dollars(one.today)),
        h("td", { class: "figure strong" }, dollars(one.month), one.unpriced > 0 && h("span", { class: "mark", title: `${count(one.unpriced)} calls without a price are not in it` }, " *")),
        h("td", { class: "figure" }, count(one.requests)),
        h("td", { class: "figure" }, h("span", { class: one.errorRate > 0.05 ? "bad" : "" }, percent(one.errorRate))),
        h("td", {}, h("span", { class: `badge ${one.status}` }, one.status, " ", h("span", { class: "sub" }, age(one.lag))))))),
      shown.some((one) => one.unpriced > 0) && h("tfoot", {}, h("tr", {}, h("td", { colspan: COLUMNS.length }, "* Some calls of this org have no price, and are not in the amount."))));
  }

  async function line(id) {
    lines.set(id, null);
    const tz = zone(view);
    const start = dayStart(now(), tz, -LINE_DAYS + 1);
    try {
      const answer = await ask(`orgs/${id}/usage`, { start: rfc3339(start), end: rfc3339(Math.floor(now() / 3_600_000 + 1) * 3_600_000), granularity: "day", groupBy: "none", timeZone: tz });
      const values = new Array(LINE_DAYS).fill(0);
      for (const point of answer.series) values[Math.round((Date.parse(point.bucketStart) - start) / 86_400_000)] = number(exact(point.cost.amount));
      lines.set(id, sparkline(values, `Spend by day, ${LINE_DAYS} days`));
    } catch {
      lines.delete(id); // the next round asks again
      return;
    }
    const target = body.querySelector(`[data-line="${id}"]`);
    target?.replaceChildren(lines.get(id).cloneNode(true));
  }

  function download() {
    if (!rows) return;
    const head = ["orgId", "orgName", "spendToday", "spendMonthToDate", "currency", "requestsThisMonth", "unpricedRequests", "errorRate", "freshness", "lagSeconds"];
    saveFile(`orgs-${stamp(now(), zone(view), { time: false })}.csv`, [head, ...chosen().map((one) =>
      [one.id, one.named ? one.name : "", digits(one.today), digits(one.month), "USD", one.requests, one.unpriced, one.errorRate, one.status, one.lag])]);
  }

  function change(next) {
    const again = zone(next) !== zone(view);
    view = next;
    if (document.activeElement !== search) search.value = get(view, "q");
    if (again) { lines.clear(); load(); }
    render();
  }

  return { element, change, redraw() {}, end() { clearInterval(timer); stop.abort(); } };
}
