// The biggest models, clients or values of a range, with their share of the whole.

import { h } from "./dom.js";
import { csvButton } from "./files.js";
import { add, count, digits, dollars, exact, number, percent, short } from "./format.js";
import { failure, groupKey, groupName } from "./parts.js";

const SHOWN = 8;

// `held()` and `failed()` are the newest answers: the file is made of what is there when somebody clicks.
export function topTable({ id, title, by, held: newest, failed: newestFailed = () => undefined, whole, note, file }) {
  const [held, failed] = [newest(), newestFailed()];
  const cells = () => [["name", "id", "spend", "currency", "requests", "unpricedRequests", "tokens", "errorRate"],
    ...sums(by, newest()?.data?.items ?? [], newestFailed()?.data?.items).map((row) =>
      [row.name, row.id, digits(row.amount), "USD", row.calls, row.unpriced, row.tokens, row.asked ? row.failed / row.asked : ""])];
  const inside = () => {
    if (!held?.data) return held?.error ? (held.error.status === 403 ? h("p", { class: "sub" }, held.error.message) : failure(held.error)) : h("p", { class: "loading", role: "status" }, "Loading …");
    const rows = sums(by, held.data.items, failed?.data?.items);
    if (rows.length === 0) return h("p", { class: "empty" }, "No calls in this range.");
    const all = number(exact(whole.cost.amount));
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title}: table` }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, title.replace(/s$/, "")), h("th", { scope: "col", class: "figure" }, "Spend"), h("th", { scope: "col", class: "figure share" }, "Share"),
        h("th", { scope: "col", class: "figure" }, "Requests"), h("th", { scope: "col", class: "figure" }, "Tokens"), failed?.data && h("th", { scope: "col", class: "figure" }, "Errors"))),
      h("tbody", {}, rows.slice(0, SHOWN).map((row) => {
        const share = all > 0 && row.amount !== null ? number(row.amount) / all : null;
        return h("tr", {}, h("th", { scope: "row" }, row.name),
          h("td", { class: "figure strong" }, row.amount === null ? h("span", { class: "mark" }, "no price") : dollars(row.amount), row.amount !== null && row.unpriced > 0 && h("span", { class: "mark" }, " *")),
          h("td", { class: "figure share" }, h("meter", { min: 0, max: 1, value: String(share ?? 0), "aria-label": `Share of ${row.name}` }), h("span", { class: "sub" }, share === null ? "–" : percent(share))),
          h("td", { class: "figure" }, count(row.calls)), h("td", { class: "figure" }, short(row.tokens)),
          failed?.data && h("td", { class: "figure" }, row.asked ? percent(row.failed / row.asked) : "–"));
      }))),
    rows.length > SHOWN && h("p", { class: "sub" }, `and ${count(rows.length - SHOWN)} more`),
    rows.slice(0, SHOWN).some((row) => row.amount !== null && row.unpriced > 0) && h("p", { class: "sub" }, "* Some of these calls have no price, and are not in the amount."));
  };
  return h("section", { class: "panel top", id, "aria-labelledby": `${id}-title` }, h("header", {}, h("h2", { id: `${id}-title` }, title, note && h("span", { class: "sub" }, ` ${note}`)), held?.data && csvButton(id, title, () => file(id), cells)), inside());
}

// A range may touch several months, and the answer has a point for each: they are added exactly.
function sums(by, points, failures = []) {
  const found = new Map();
  const row = (point) => {
    const key = groupKey(by, point);
    if (!found.has(key)) found.set(key, { id: key, name: groupName(by, point), amount: null, calls: 0, tokens: 0, unpriced: 0, asked: 0, failed: 0 });
    return found.get(key);
  };
  for (const point of points) {
    const one = row(point);
    one.amount = add(one.amount, exact(point.cost.amount));
    one.calls += point.invocations;
    one.tokens += point.inputTokens + point.outputTokens;
    one.unpriced += point.unpriced.invocations;
  }
  for (const point of failures) {
    const one = row(point);
    one.asked += point.invocations;
    one.failed += point.errors.error + point.errors.timeout + point.errors.throttled;
  }
  const order = (one) => (one.amount === null ? -1n : one.amount);
  return [...found.values()].sort((a, b) => (order(a) < order(b) ? 1 : order(a) > order(b) ? -1 : b.calls - a.calls));
}
