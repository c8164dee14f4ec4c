// The form that makes or changes a budget. The server has the rules: what it refuses stands above the form in its
// words, and what was typed stays.

import { fill, h } from "./dom.js";
import { failure } from "./parts.js";
import { ask } from "./rest.js";
import { browserZone } from "./view.js";

const METRICS = [["cost", "Cost in US dollars"], ["tokens", "Tokens"], ["requests", "Requests"]];
const PERIODS = ["day", "week", "month", "quarter", "year"];

// "80 %, 100%, 2500" -> [{percent: "80"}, {percent: "100"}, {amount: "2500"}], each on the actual or forecast figure.
export function thresholdsOf(text, on) {
  return text.split(/[,;]/).map((part) => part.trim().replace(/^\$\s*/, "")).filter(Boolean)
    .map((part) => (part.endsWith("%") ? { percent: part.slice(0, -1).trim(), on } : { amount: part, on }));
}

const textOf = (thresholds, on) => thresholds.filter((one) => one.on === on).map((one) => (one.percent !== null ? `${one.percent} %` : one.amount)).join(", ");

// `open(budget)` shows the form with a budget, or empty for a new one; `done(text)` is called once it is saved.
export function budgetForm({ org, signal, dimensions, models, done }) {
  const element = h("div", { class: "budget-form" });
  let changed = null;
  let busy = false;
  let from = null; // what had the focus: it gets it back

  function open(budget) {
    changed = budget;
    from = document.activeElement?.id;
    fill(element);
    element.replaceChildren(form(budget));
    element.querySelector("input").focus();
  }

  // A form may be opened before the dimensions have come; then they come into it.
  function fit() {
    const scope = element.querySelector("#budget-scope");
    if (!scope) return;
    const there = new Set([...scope.options].map((one) => one.value));
    for (const one of dimensions()) if (!there.has(one.name)) scope.append(option(one.name));
  }

  const option = (name) => h("option", { value: name }, `A value of ${name}`);

  function close() {
    element.replaceChildren();
    (document.getElementById(from) ?? document.getElementById("budget-new"))?.focus();
  }

  function form(budget) {
    const pick = (id, label, options, value) => h("label", { class: "pick", for: id }, h("span", {}, label),
      h("select", { id, name: id }, options.map(([key, text]) => h("option", { value: key, selected: key === value }, text))));
    const type = (id, label, value, more = {}) => h("label", { class: "pick", for: id }, h("span", {}, label), h("input", { id, name: id, type: "text", autocomplete: "off", value: value ?? "", ...more }));
    const scope = budget?.scope ?? {};
    const kinds = [["", "Whole org"], ["modelId", "A model"], ["client", "A client"], ...dimensions().map((one) => [one.name, `A value of ${one.name}`])];
    const kind = scope.modelId ? "modelId" : scope.dimension ?? "";
    if (!kinds.some(([key]) => key === kind)) kinds.push([kind, `A value of ${kind}`]);
    const known = [...models()].sort((a, b) => (a[1] < b[1] ? -1 : 1));
    if (scope.modelId && !models().has(scope.modelId)) known.push([scope.modelId, scope.modelId]);
    const model = h("span", {}, pick("budget-model", "Model", known, scope.modelId));
    const value = h("span", {}, type("budget-value", "Value (empty: without one)", scope.value));
    const zones = [...new Set([budget?.timeZone ?? "UTC", "UTC", browserZone(), ...(Intl.supportedValuesOf?.("timeZone") ?? [])])];
    const told = h("div", {});
    const whole = h("form", { class: "panel", "aria-label": budget ? `Change ${budget.name}` : "New budget", onsubmit: (event) => save(event, told), onkeydown: (event) => { if (event.key === "Escape") close(); } },
      told,
      h("div", { class: "toolbar" },
        type("budget-name", "Name", budget?.name, { required: true, maxlength: 128 }),
        pick("budget-metric", "What is counted", METRICS, budget?.metric),
        type("budget-amount", "Amount", budget?.amount, { required: true, inputmode: "decimal" }),
        pick("budget-period", "Each", PERIODS.map((one) => [one, one]), budget?.period ?? "month"),
        pick("budget-zone", "Time zone", zones.map((one) => [one, one]), budget?.timeZone ?? "UTC"),
        pick("budget-scope", "Of", kinds, kind), model, value,
        type("budget-actual", "Tell when spent", budget ? textOf(budget.thresholds, "actual") : "80 %, 100 %", { "aria-describedby": "budget-help" }),
        type("budget-forecast", "Tell when forecast", budget ? textOf(budget.thresholds, "forecast") : "", { "aria-describedby": "budget-help" })),
      h("p", { class: "sub", id: "budget-help" }, "Thresholds are percentages of the amount, or amounts: 80 %, 100 %, 2500."),
      h("div", { class: "tools" }, h("button", { type: "submit", class: "main", id: "budget-save" }, budget ? "Save" : "Set the budget"), h("button", { type: "button", class: "quiet", id: "budget-cancel", onclick: close }, "Cancel")));
    const show = () => {
      const chosen = whole.elements["budget-scope"].value;
      model.hidden = chosen !== "modelId";
      value.hidden = chosen === "" || chosen === "modelId";
    };
    whole.elements["budget-scope"].addEventListener("change", show);
    whole.elements["budget-scope"].addEventListener("focus", fit);
    show();
    return whole;
  }

  async function save(event, told) {
    event.preventDefault();
    if (busy) return;
    busy = true;
    const said = Object.fromEntries([...new FormData(event.target)].map(([key, text]) => [key.replace("budget-", ""), text.trim()]));
    const body = {
      name: said.name, metric: said.metric, period: said.period, timeZone: said.zone, amount: said.amount.replace(/^\$\s*/, ""),
      thresholds: [...thresholdsOf(said.actual, "actual"), ...thresholdsOf(said.forecast, "forecast")],
      ...(said.scope === "modelId" ? { scope: { modelId: said.model } } : said.scope ? { scope: { dimension: said.scope, value: said.value } } : {}),
    };
    try {
      const path = `orgs/${org}/budgets${changed ? `/${changed.budgetId}` : ""}`;
      await ask(path, {}, { method: changed ? "PUT" : "POST", body, signal, more: changed ? {} : { "Idempotency-Key": crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` } });
      close();
      done(changed ? "The budget is changed." : "The budget is set.");
    } catch (problem) {
      if (problem.name === "AbortError") return;
      fill(told, failure(problem));
    } finally {
      busy = false;
    }
  }

  return { element, open, fit };
}
