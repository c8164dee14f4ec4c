// What an org was told of beside its budgets: hours of unusual spend, and its days. And what it asks for.

import { h } from "./dom.js";
import { count, dollars, exact, percent, stamp } from "./format.js";

export const hasNotices = (features) => features.has("orgs/{orgId}/notices/sent");

const cost = (one) => (one === null || one.amount === null ? "unknown" : dollars(exact(one.amount)));

// What the org asks for, in a sentence.
export function asked({ unusualSpend, dailySummary }) {
  const parts = [
    unusualSpend.enabled && `hours that cost ${dollars(exact(unusualSpend.minimumAmount))} or more, and over ${unusualSpend.factor} times the usual`,
    dailySummary.enabled && `a summary of each day of ${dailySummary.timeZone}`,
  ].filter(Boolean);
  return parts.length > 0 ? `The org asks to be told of ${parts.join(", and ")}.` : "The org asks for no notices.";
}

// `tz`: the zone of the view. `delivered` shows a delivery.
export function noticesTable(items, tz, delivered) {
  return h("table", {}, h("thead", {}, h("tr", {}, ["Period", "Notice", "Spent", "Compared with", "Deliveries"].map((text, place) => h("th", { scope: "col", class: place === 2 ? "figure" : "" }, text)))),
    h("tbody", {}, items.map((one) => {
      const { what, spent, against, more } = shown(one, tz);
      return h("tr", { "data-notice": one.noticeId },
        h("th", { scope: "row" }, what.period), h("td", {}, what.kind, more && h("span", { class: "id" }, more)),
        h("td", { class: "figure" }, spent, h("span", { class: "id" }, one.final ? "final" : "provisional")),
        h("td", {}, against),
        h("td", {}, one.deliveries.length === 0 ? h("span", { class: "sub" }, "no webhook") : h("ul", { class: "deliveries" }, one.deliveries.map((delivery) => h("li", {}, delivered(delivery, tz))))));
    })));
}

function shown({ unusualSpend: hour, dailySummary: day, periodStart }, tz) {
  if (hour) {
    return {
      what: { kind: "Unusual hour", period: stamp(Date.parse(periodStart), tz) },
      spent: dollars(exact(hour.spent)),
      against: `at most ${dollars(exact(hour.usual))} about this time in ${count(hour.weeks.length)} ${hour.weeks.length === 1 ? "week" : "weeks"} before`,
      more: hour.unpriced > 0 && `${count(hour.unpriced)} calls without a price are not in it`,
    };
  }
  return {
    what: { kind: "Day", period: day.day },
    spent: cost(day.cost),
    against: `the day before ${cost(day.dayBefore.cost)}, a week before ${cost(day.weekBefore.cost)}`,
    more: `${day.timeZone}: ${count(day.invocations)} ${day.invocations === 1 ? "request" : "requests"}${day.errorRate === null ? "" : `, ${percent(day.errorRate)} failed`}${day.unpriced > 0 ? `, ${count(day.unpriced)} without a price` : ""}`,
  };
}

export function noticeCells(items) {
  return [["noticedAt", "kind", "periodStart", "periodEnd", "timeZone", "spent", "usual", "dayBefore", "weekBefore", "requests", "unpriced", "watermark", "final", "delivered", "waiting", "failed"],
    ...items.map(({ unusualSpend: hour, dailySummary: day, ...one }) => [one.noticedAt, one.kind, one.periodStart, one.periodEnd, day?.timeZone ?? "UTC", hour?.spent ?? day.cost.amount, hour?.usual ?? null,
      day?.dayBefore.cost?.amount ?? null, day?.weekBefore.cost?.amount ?? null, day?.invocations ?? null, (hour ?? day).unpriced, one.watermark, one.final,
      ...["delivered", "pending", "failed"].map((state) => one.deliveries.filter((delivery) => delivery.status === state).length)])];
}
