// Budgets of an org with the period that runs, and the alerts and notices that were sent with their deliveries. Whoever has the
// role makes, changes and deletes budgets here, by the same requests as every other client.

import { budgetForm } from "./budget-form.js";
import { fill, h } from "./dom.js";
import { csvButton } from "./files.js";
import { count, dollars, exact, number, percent, short, stamp } from "./format.js";
import { asked, hasNotices, noticeCells, noticesTable } from "./notices.js";
import { failure, name } from "./parts.js";
import { ask, now, passes } from "./rest.js";
import { zone } from "./view.js";

const EVERY_MS = 10_000;
const SHOWN = 50;
const ALERTS_SHOWN = 10;

export const hasBudgets = (features) => features.has("orgs/{orgId}/budgets");

const money = (metric, text) => (text === null ? "unknown" : metric === "cost" ? dollars(exact(text)) : count(Number(text)));
const threshold = (one, metric) => `${one.percent !== null ? `${one.percent} %` : money(metric, one.amount)} ${one.on}`;
const share = ({ current, amount }) => (current.spent === null ? null : number(exact(current.spent)) / number(exact(amount)));
const isWhole = ({ scope }) => !scope.modelId && !scope.dimension;

export function budgetsPanel({ org, view, can, signal, features, say, told, dimensions }) {
  let budgets = null;
  let alerts = null;
  let notices = null;
  let wanted = null; // what the org asks to be told of
  let error = null;
  let fault = null;
  let loadedAt = null;
  let deleting = null; // the id of the budget whose deletion was asked for, and is not confirmed yet
  let named = { models: new Map(), webhooks: new Map() };
  const writes = can("analytics:budgets:write");
  const form = writes ? budgetForm({ org, signal, dimensions, models: () => named.models, done: (text) => { say(text); load(); } }) : null;
  const list = h("div", {});
  const sent = h("div", {});
  const noticed = h("div", {});
  const notes = h("div", {});
  const file = (what) => `${what}-${org.slice(0, 8)}-${stamp(now(), zone(view()), { time: false })}.csv`;
  const element = h("section", { class: "panel budgets", id: "budgets", "aria-labelledby": "budgets-title" },
    h("header", {}, h("h2", { id: "budgets-title" }, "Budgets"), h("div", { class: "tools" },
      writes && h("button", { type: "button", class: "quiet", id: "budget-new", onclick: () => form.open(null) }, "New budget"), csvButton("budgets", "Budgets", () => file("budgets"), budgetCells))),
    form?.element ?? null, notes, list,
    features.has("orgs/{orgId}/alerts") && [h("header", {}, h("h3", { id: "alerts-title" }, "Alerts"), csvButton("alerts", "Alerts", () => file("alerts"), alertCells)), sent],
    hasNotices(features) && [h("header", {}, h("h3", { id: "notices-title" }, "Notices"), csvButton("notices", "Notices", () => file("notices"), () => noticeCells(notices?.items ?? []))), noticed]);
  const timer = setInterval(() => { if (document.visibilityState !== "hidden") load(); }, EVERY_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
  learnNames();
  load();

  async function learnNames() {
    const found = await Promise.all([`orgs/${org}/models`, features.has("orgs/{orgId}/webhooks") && `orgs/${org}/webhooks`].map(async (path) => {
      try {
        return path ? (await ask(path, { limit: 1000 }, { signal })).items : [];
      } catch {
        return []; // ids stand there instead
      }
    }));
    named = { models: new Map(found[0].map((one) => [one.modelId, name(one)])), webhooks: new Map(found[1].map((one) => [one.webhookId, one.name])) };
    render();
  }

  async function load() {
    try {
      [budgets, alerts, notices, wanted] = await Promise.all([
        ask(`orgs/${org}/budgets`, { limit: SHOWN }, { signal }),
        features.has("orgs/{orgId}/alerts") ? ask(`orgs/${org}/alerts`, { limit: ALERTS_SHOWN }, { signal }) : null,
        ...(hasNotices(features) ? [ask(`orgs/${org}/notices/sent`, { limit: ALERTS_SHOWN }, { signal }), ask(`orgs/${org}/notices`, {}, { signal })] : [null, null]),
      ]);
      error = null;
      loadedAt = now();
    } catch (problem) {
      if (problem.name === "AbortError") return;
      error = problem;
    }
    render();
    told();
  }

  // A change by a button of a row: what it answered, or why it was refused, stands above the table.
  async function change(method, path, text) {
    try {
      await ask(`orgs/${org}/${path}`, {}, { method, signal });
      fault = null;
      say(text);
    } catch (problem) {
      if (problem.name === "AbortError") return;
      fault = problem;
    }
    deleting = null;
    load();
  }

  function render() {
    form?.fit();
    fill(notes, fault && failure(fault));
    const old = error && budgets && passes(error);
    if (error && !old) {
      fill(list, failure(error, load));
      fill(sent);
      fill(noticed);
      return;
    }
    if (!budgets) {
      fill(list, h("p", { class: "loading", role: "status" }, "Loading …"));
      return;
    }
    fill(list, old && h("p", { class: "sub" }, `These budgets are of ${stamp(loadedAt, zone(view()), { seconds: true })}. The page goes on asking.`), budgets.items.length === 0
      ? h("p", { class: "empty" }, "No budget has been set. ", !writes && [h("a", { href: "../docs#createBudget" }, "The API"), " sets one."])
      : h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Budgets: table" }, table(budgets.items)),
    budgets.nextCursor && h("p", { class: "sub" }, `The first ${SHOWN} budgets are listed; the API lists all.`));
    if (alerts) fill(sent, alerts.items.length === 0 ? h("p", { class: "empty" }, "No threshold has been reached.")
      : h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Alerts: table" }, sentTable(alerts.items)),
    alerts.nextCursor && h("p", { class: "sub" }, `The newest ${ALERTS_SHOWN} alerts are listed; the API lists all.`));
    if (notices) fill(noticed, h("p", { class: "sub", id: "notices-asked" }, asked(wanted)), notices.items.length === 0 ? h("p", { class: "empty" }, "No notice has been sent.")
      : h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Notices: table" }, noticesTable(notices.items, zone(view()), delivered)),
    notices.nextCursor && h("p", { class: "sub" }, `The newest ${ALERTS_SHOWN} notices are listed; the API lists all.`));
  }

  function scope({ modelId, dimension, value }) {
    if (modelId) return named.models.get(modelId) ?? `model ${modelId}`;
    return dimension ? `${dimension}: ${value || `without ${dimension}`}` : "whole org";
  }

  function table(items) {
    const tz = zone(view());
    return h("table", {}, h("thead", {}, h("tr", {}, ["Budget", "Period", "Used", "Spent", "Forecast", "Amount", "State"].map((text, place) =>
      h("th", { scope: "col", class: place > 2 && place < 6 ? "figure" : "" }, text)), writes && h("th", { scope: "col" }, "Change"))),
    h("tbody", {}, items.map((one) => {
      const { current } = one;
      const used = share(one);
      return h("tr", { "data-budget": one.budgetId },
        h("th", { scope: "row" }, one.name, h("span", { class: "id" }, scope(one.scope))),
        h("td", {}, one.period, h("span", { class: "id" }, `until ${stamp(Date.parse(current.periodEnd), tz)}`)),
        h("td", { class: "share" }, meter(one, `Used of ${one.name}`), h("span", { class: "sub" }, used === null ? "–" : percent(used))),
        h("td", { class: "figure strong", "data-spent": one.budgetId }, current.fault ? h("span", { class: "mark" }, current.fault) : money(one.metric, current.spent),
          current.unpriced > 0 && h("span", { class: "mark", title: `${count(current.unpriced)} calls without a price are not in it` }, " *")),
        h("td", { class: "figure" }, current.forecast === null ? "–" : money(one.metric, current.forecast)),
        h("td", { class: "figure" }, one.metric === "cost" ? money("cost", one.amount) : `${short(Number(one.amount))} ${one.metric}`),
        h("td", {}, h("span", { class: `badge ${{ ok: "fresh", alarm: "delayed" }[current.state] ?? ""}` }, current.state ?? "unknown"),
          h("span", { class: "id" }, current.thresholds.filter((mark) => mark.state !== "ok").map((mark) => `${threshold(mark, one.metric)} ${mark.state === "alarm" ? "reached" : "resolved"}`).join(", "),
            current.final ? "" : current.state === "alarm" ? " (provisional)" : "")),
        writes && h("td", {}, h("span", { class: "tools" }, buttons(one))));
    })));
  }

  function buttons(one) {
    if (deleting !== one.budgetId) {
      return [h("button", { type: "button", class: "quiet", id: `edit-${one.budgetId}`, "aria-label": `Change ${one.name}`, onclick: () => form.open(newest(one)) }, "Change"),
        h("button", { type: "button", class: "quiet", id: `delete-${one.budgetId}`, "aria-label": `Delete ${one.name}`, onclick: () => { deleting = one.budgetId; render(); document.getElementById(`keep-${one.budgetId}`)?.focus(); } }, "Delete")];
    }
    return [h("button", { type: "button", class: "quiet", id: `keep-${one.budgetId}`, onclick: () => { deleting = null; render(); document.getElementById(`delete-${one.budgetId}`)?.focus(); } }, "Keep"),
      h("button", { type: "button", class: "quiet bad", id: `really-${one.budgetId}`, "aria-label": `Delete for good: ${one.name}`, onclick: () => change("DELETE", `budgets/${one.budgetId}`, "The budget is deleted.") }, "Delete for good")];
  }

  const newest = ({ budgetId }) => budgets.items.find((one) => one.budgetId === budgetId);

  function sentTable(items) {
    const tz = zone(view());
    return h("table", {}, h("thead", {}, h("tr", {}, ["Reached", "Budget", "Threshold", "Figure", "State", "Deliveries"].map((text, place) => h("th", { scope: "col", class: place === 3 ? "figure" : "" }, text)))),
      h("tbody", {}, items.map((one) => h("tr", { "data-alert": one.alertId },
        h("th", { scope: "row" }, stamp(Date.parse(one.crossedAt), tz)),
        h("td", {}, one.budgetName, h("span", { class: "id" }, scope(one.scope))), h("td", {}, threshold(one, one.metric)),
        h("td", { class: "figure" }, money(one.metric, one.on === "forecast" ? one.forecast : one.spent), h("span", { class: "id" }, one.final ? "final" : "provisional")),
        h("td", {}, h("span", { class: `badge ${one.state === "alarm" ? "delayed" : "fresh"}` }, one.state)),
        h("td", {}, one.deliveries.length === 0 ? h("span", { class: "sub" }, "no webhook") : h("ul", { class: "deliveries" }, one.deliveries.map((delivery) => h("li", {}, delivered(delivery, tz)))))))));
  }

  function delivered(one, tz) {
    const at = (text) => stamp(Date.parse(text), tz, { seconds: true, date: now() - Date.parse(text) > 86_400_000 });
    const what = one.kind === "budget.resolved" ? "resolved, " : "";
    const who = named.webhooks.get(one.webhookId) ?? `webhook ${one.webhookId.slice(0, 8)}`;
    const tries = `${count(one.attempts)} ${one.attempts === 1 ? "attempt" : "attempts"}`;
    const why = one.lastError ?? (one.lastStatus === null ? null : `status ${one.lastStatus}`);
    const state = { delivered: `delivered ${one.deliveredAt ? at(one.deliveredAt) : ""}`, pending: `waiting${one.attempts > 0 && one.nextAttemptAt ? `, again ${at(one.nextAttemptAt)}` : ""}`, failed: "failed" }[one.status];
    return [`${who}: ${what}`, h("span", { class: one.status === "failed" ? "bad" : "" }, state), h("span", { class: "sub" }, `, ${tries}${one.status !== "delivered" && why ? `: ${why}` : ""} `),
      writes && one.status === "failed" && h("button", { type: "button", class: "quiet", id: `retry-${one.deliveryId}`, "aria-label": `Send again to ${who}`, onclick: () => change("POST", `webhooks/${one.webhookId}/deliveries/${one.deliveryId}/retry`, "The delivery is tried again.") }, "Send again")];
  }

  // --- files ---

  function budgetCells() {
    return [["budgetId", "name", "scope", "metric", "period", "timeZone", "periodStart", "periodEnd", "spent", "forecast", "amount", "state", "unpriced", "watermark", "final"],
      ...(budgets?.items ?? []).map((one) => [one.budgetId, one.name, scope(one.scope), one.metric, one.period, one.timeZone, one.current.periodStart, one.current.periodEnd,
        one.current.spent, one.current.forecast, one.amount, one.current.state, one.current.unpriced, one.current.watermark, one.current.final])];
  }

  function alertCells() {
    return [["crossedAt", "budget", "scope", "threshold", "on", "metric", "level", "spent", "forecast", "state", "watermark", "final", "delivered", "waiting", "failed"],
      ...(alerts?.items ?? []).map((one) => [one.crossedAt, one.budgetName, scope(one.scope), one.percent !== null ? `${one.percent} %` : one.amount, one.on, one.metric, one.level, one.spent, one.forecast, one.state, one.watermark, one.final,
        ...["delivered", "pending", "failed"].map((state) => one.deliveries.filter((delivery) => delivery.status === state).length)])];
  }

  // --- the card of the month ---

  // The month against the budget of the whole org by month; the lowest one, where there are several.
  function ofMonth(tz) {
    if (!budgets) return null;
    const [one, ...others] = budgets.items.filter((budget) => isWhole(budget) && budget.metric === "cost" && budget.period === "month")
      .sort((a, b) => number(exact(a.amount)) - number(exact(b.amount)));
    if (!one) return h("p", { class: "sub", id: "month-budget" }, "no budget by month");
    const { current } = one;
    const used = share(one);
    const over = current.forecast !== null && number(exact(current.forecast)) > number(exact(one.amount));
    return h("div", { class: "against", id: "month-budget", "data-budget": one.budgetId }, meter(one, `Used of the budget ${one.name}`),
      h("p", { class: "sub" }, `${used === null ? "–" : percent(used)} of ${dollars(exact(one.amount))}${others.length > 0 ? ", the lowest budget" : ""}`),
      h("p", { class: `sub${over ? " bad" : ""}` }, current.forecast === null ? "no forecast yet" : `forecast ${dollars(exact(current.forecast))}${over ? ", over budget" : ""}`),
      one.timeZone !== tz && h("p", { class: "sub" }, `month of ${one.timeZone}`));
  }

  return { element, ofMonth };
}

const meter = (one, label) => h("meter", { min: 0, max: 1, value: String(Math.min(share(one) ?? 0, 1)), class: one.current.state === "alarm" ? "over" : "", "aria-label": label });
