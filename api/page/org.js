// One org: cards, charts and tables of a range. A commit of the worker is heard by server-sent events, and then the
// figures are asked for again by REST: so what stands here is what REST says, and nothing else.

import { buckets, Chart } from "./charts.js";
import { budgetsPanel, hasBudgets } from "./budgets.js";
import { exportsPanel } from "./exports.js";
import { csvButton } from "./files.js";
import { fill, h } from "./dom.js";
import { add, age, change, count, dayStart, digits, dollars, exact, millis, monthStart, number, percent, rfc3339, short, stamp } from "./format.js";
import { degraded, failure, name, spaced } from "./parts.js";
import { all, ask, follow, now, passes } from "./rest.js";
import { nearest, nulls, SERIES_SHOWN, seriesOf, zeros } from "./series.js";
import { toolbar } from "./toolbar.js";
import { topTable } from "./tops.js";
import { before, changed, get, grain, hours, range, zone } from "./view.js";

const TICK_MS = 2000; // the least time between two rounds that live messages cause
const SLOW_MS = 30_000; // the tables and the comparison, which take more to answer
const POLL_MS = 10_000; // where live messages do not come
const POINTS_MAX = 10_000;
const STATUSES = [["error", "Errors", 5], ["timeout", "Timeouts", 2], ["throttled", "Throttled", 6]];

export function orgView(first, context) {
  const { org } = first;
  let view = first;
  let stop = new AbortController();
  let ear = new AbortController();
  const ended = new AbortController();
  const found = {}; // by the name of a question: {data, error, at}
  let dimensions = [];
  let orgName = null;
  let live = "connecting";
  let fresh = null;
  let round = 0;
  let asking = false;
  let again = null;

  const parts = Object.fromEntries(["title", "badge", "toolbar", "notices", "cards", "tops"].map((id) => [id, h("div", { class: `part-${id}`, id: `part-${id}` })]));
  const spend = new Chart({ id: "spend", title: "Spend over time" });
  const tokens = new Chart({ id: "tokens", title: "Tokens over time" });
  const errors = new Chart({ id: "errors", title: "Calls that failed" });
  const latency = new Chart({ id: "latency", title: "Latency" });
  const charts = [spend, tokens, errors, latency];
  const can = (role) => context.caller.roles.includes("admin") || context.caller.roles.includes(role);
  const exportsOf = can("analytics:exports:read") || can("analytics:exports:create")
    ? exportsPanel({ org, view: () => view, can, signal: ended.signal, features: context.features, say: context.say }) : null;
  const budgetsOf = hasBudgets(context.features) && can("analytics:budgets:read")
    ? budgetsPanel({ org, view: () => view, can, signal: ended.signal, features: context.features, say: context.say, told: () => cards(), dimensions: () => dimensions }) : null;
  const element = h("div", { class: "view org" }, h("div", { class: "part-head" }, parts.title, parts.badge), parts.toolbar, parts.notices, parts.cards,
    h("div", { class: "charts" }, charts.map((chart) => chart.element)), budgetsOf?.element ?? null, parts.tops, exportsOf?.element ?? null);

  const freshness = freshnessBox();
  const tick = spaced(() => load(false), TICK_MS);
  const timers = [
    setInterval(() => { badge(); notices(); }, 1000),
    setInterval(() => { if (document.visibilityState !== "hidden") load(true); }, SLOW_MS),
    setInterval(() => { if (live !== "live" && document.visibilityState !== "hidden") load(false); }, POLL_MS),
  ];
  context.title(org.slice(0, 8));
  begin();

  async function begin() {
    element.dataset.view = location.hash; // the address that the view shows, for whoever waits for it
    render();
    listen();
    document.addEventListener("visibilitychange", seen, { signal: ended.signal });
    try {
      dimensions = (await ask(`orgs/${org}/dimensions`, {}, { signal: ended.signal })).items;
    } catch {
      // Without dimensions the figures can be split by model and client all the same.
    }
    if (!ended.signal.aborted) load(true);
  }

  // A browser has six connections to a server for all its tabs, so a tab that nobody looks at gives its own back.
  function listen() {
    ear.abort();
    ear = new AbortController();
    follow(`orgs/${org}/live`, { signal: ear.signal, tell: hear, state: (text) => { live = text; badge(); if (text === "away") tick(); } });
  }

  function seen() {
    if (document.visibilityState === "hidden") {
      ear.abort();
      live = "connecting";
    } else {
      listen();
      load(true);
    }
  }

  function hear(event, data) {
    if (event === "usage") {
      fresh = { ...fresh, watermark: data.watermark, countedThrough: data.countedThrough };
      if (zone(view) === "UTC") {
        for (const part of ["day", "month"]) {
          const held = found[part];
          if (held?.data && held.data.start === data[part].bucketStart) held.data = { ...held.data, totals: { ...held.data.totals, ...data[part] } };
        }
        cards();
      }
      tick();
    } else if (event === "freshness") {
      fresh = data;
      if (now() - (found.main?.at ?? 0) > POLL_MS) tick(); // of a quiet org, and so that a database that is away is noticed
    }
    badge();
  }

  // --- asking ---

  // One round of questions at a time. A tick that comes meanwhile causes one more round afterwards; another view
  // does not wait, and ends the round that is under way.
  async function load(whole, { another = false } = {}) {
    if (asking && !another) {
      again = again === "whole" || whole ? "whole" : "part";
      return;
    }
    stop.abort();
    stop = new AbortController();
    asking = true;
    again = null;
    const mine = ++round;
    try {
      await askAll(whole, mine);
    } finally {
      if (mine === round) {
        asking = false;
        if (again === "whole" && !ended.signal.aborted) load(true);
        else if (again && !ended.signal.aborted) tick();
      }
    }
  }

  async function askAll(whole, mine) {
    const { signal } = stop;
    const tz = zone(view);
    const at = now();
    const span = range(view, at);
    const granularity = grain(view, span);
    const by = get(view, "by");
    const fits = by === "model" || by === "none" ? span : hours(span);
    const path = `orgs/${org}`;
    const asked = (r, more) => ({ start: rfc3339(r.start), end: rfc3339(r.end), timeZone: tz, ...more });
    const soon = Math.floor(at / 60_000 + 1) * 60_000;
    const questions = {
      main: () => all(`${path}/usage`, asked(fits, { granularity, groupBy: by }), POINTS_MAX, { signal }),
      day: () => ask(`${path}/usage`, asked({ start: dayStart(at, tz), end: soon }, { granularity: "day", groupBy: "none" }), { signal }),
      month: () => ask(`${path}/usage`, asked({ start: monthStart(at, tz), end: soon }, { granularity: "month", groupBy: "none" }), { signal }),
      reliability: () => ask(`${path}/reliability`, asked(span, { granularity, groupBy: "none", limit: POINTS_MAX }), { signal }),
    };
    if (whole || !found.models) {
      // Sums of a range do not depend on a zone, and some zones have no days by client.
      const sums = { granularity: "month", timeZone: "UTC" };
      questions.models = () => all(`${path}/usage`, asked(span, { ...sums, groupBy: "model" }), POINTS_MAX, { signal });
      questions.failed = () => all(`${path}/reliability`, asked(span, { ...sums, groupBy: "model" }), POINTS_MAX, { signal });
      questions.clients = () => all(`${path}/usage`, asked(hours(span), { ...sums, groupBy: "client" }), POINTS_MAX, { signal });
      questions.dimensions = () => Promise.all(dimensions.map((one) => all(`${path}/usage`, asked(hours(span), { ...sums, groupBy: one.name }), POINTS_MAX, { signal })));
      const yesterday = { start: dayStart(at, tz, -1), end: Math.min(dayStart(at, tz), dayStart(at, tz, -1) + (soon - dayStart(at, tz))) };
      questions.yesterday = () => ask(`${path}/usage`, asked(yesterday, { granularity: "day", groupBy: "none" }), { signal });
      if (get(view, "compare") === "1") {
        const earlier = before(span);
        questions.before = () => all(`${path}/usage`, asked(earlier, { granularity, groupBy: "none" }), POINTS_MAX, { signal });
        questions.reliabilityBefore = () => ask(`${path}/reliability`, asked(earlier, { granularity: "month", groupBy: "none" }), { signal });
      } else {
        delete found.before;
        delete found.reliabilityBefore;
      }
    }
    element.setAttribute("aria-busy", String(!found.main?.data));
    await Promise.all(Object.entries(questions).map(async ([key, question]) => {
      try {
        const data = await question();
        if (mine === round) found[key] = { data, error: null, at, span: key === "main" ? fits : span, granularity, by, tz };
      } catch (error) {
        if (error.name === "AbortError" || mine !== round) return;
        if (error.status === 401) return void context.refused(error);
        // Of the same question, the last figures stay, and say how old they are.
        const held = found[key];
        const alike = passes(error) && held?.data && held.tz === tz && held.granularity === granularity && held.by === by;
        found[key] = { ...(alike ? held : { at }), error };
      }
    }));
    if (mine !== round) return;
    element.removeAttribute("aria-busy");
    const answer = found.main.data?.first;
    if (answer && !found.main.error) {
      element.dataset.watermark = answer.freshness.watermark; // of the figures that are shown
      orgName = answer.orgName;
      const newer = answer.freshness;
      if (!fresh || !fresh.watermark || newer.watermark >= fresh.watermark) fresh = newer;
    }
    render();
  }

  // --- showing ---

  function render() {
    const title = orgName ?? org;
    context.title(orgName ?? org.slice(0, 8));
    fill(parts.title, h("h1", {}, title), orgName && h("code", { class: "id" }, org));
    const open = element.querySelector(".picks")?.contains(document.activeElement) && document.activeElement.matches("input[type=datetime-local]");
    if (!open) fill(parts.toolbar, toolbar(view, dimensions, go));
    badge();
    notices();
    cards();
    showSpend();
    showReliability();
    tops();
  }

  function badge() {
    const tz = zone(view);
    if (!fresh) return fill(parts.badge, h("span", { class: "badge" }, live === "away" ? "away" : "…"));
    const lag = fresh.watermark ? (now() - Date.parse(fresh.watermark)) / 1000 : null;
    const counted = fresh.countedThrough ? (now() - Date.parse(fresh.countedThrough)) / 1000 : null;
    const time = (text) => h("time", { datetime: text }, stamp(Date.parse(text), tz, { seconds: true, date: (now() - Date.parse(text)) > 86_400_000 }));
    if (!parts.badge.contains(freshness.element)) parts.badge.replaceChildren(freshness.element);
    return fill(freshness.summary,
      h("span", { class: `badge ${fresh.status}` }, fresh.status),
      h("span", { class: `live ${live === "live" ? "on" : "off"}` }, { live: "live", away: "not connected", full: "every 10 s", connecting: "connecting" }[live]),
      fresh.countedThrough && h("span", {}, "counted up to ", time(fresh.countedThrough), h("span", { class: "sub" }, ` ${age(counted)} ago`)),
      fresh.watermark && h("span", {}, "complete up to ", time(fresh.watermark), h("span", { class: "sub" }, ` ${age(lag)} ago`)));
  }

  function notices() {
    const tz = zone(view);
    const gone = ["main", "reliability", "day", "month"].map((key) => found[key]).find((one) => one?.error && one.data && passes(one.error));
    const usage = found.models?.data;
    const unpriced = new Map();
    for (const point of usage?.items ?? []) {
      if (point.unpriced.invocations > 0) unpriced.set(name(point), (unpriced.get(name(point)) ?? 0) + point.unpriced.invocations);
    }
    const calls = [...unpriced.values()].reduce((sum, value) => sum + value, 0);
    const worst = [...unpriced].sort((a, b) => b[1] - a[1]);
    const counts = found.main?.data?.first?.dimension;
    const since = counts?.since ? Date.parse(counts.since) : null;
    fill(parts.notices,
      gone && degraded(gone.error, gone.at, tz),
      calls > 0 && h("div", { class: "banner", id: "unpriced" },
        h("strong", {}, `${count(calls)} ${calls === 1 ? "call has" : "calls have"} no price `), "and are in no amount below: ",
        worst.slice(0, 4).map(([model, many], place) => [place > 0 && ", ", h("b", {}, model), ` (${count(many)})`]), worst.length > 4 && ` and ${worst.length - 4} more models`, "."),
      counts && since === null && h("div", { class: "banner" }, `Not every part of this org's stream counts ${counts.name} yet.`),
      since !== null && since > range(view).start && h("div", { class: "banner" }, `${counts.name} is counted since ${stamp(since, tz)}: figures from before are not split by it.`));
  }

  function card(id, label, value, sub, extra) {
    return h("div", { class: "card", id: `card-${id}` }, h("h2", {}, label), h("p", { class: `value${value.length > 12 ? " longer" : value.length > 9 ? " long" : ""}`, "data-value": id }, value), sub && h("p", { class: "sub" }, sub), extra);
  }

  function cards() {
    const tz = zone(view);
    const day = found.day?.data?.totals;
    const month = found.month?.data?.totals;
    const yesterday = found.yesterday?.data?.totals;
    const whole = totals(found.main);
    const reliable = found.reliability?.data?.totals;
    const earlier = found.before?.data?.first?.totals;
    const earlierReliable = found.reliabilityBefore?.data?.totals;
    const basis = { book: "at book prices", estimate: "as producers estimate", mixed: "book prices and estimates", none: "no call has a price" };
    const money = (figures, error) => (figures ? (figures.invocations === 0 ? "$0.00" : dollars(exact(figures.cost.amount))) : error ? "–" : "…");
    const why = (held) => !held?.data && held?.error?.message;
    const against = (now_, then) => (now_ && then ? change(number(exact(now_.cost.amount)), number(exact(then.cost.amount))) : null);
    fill(parts.cards,
      card("today", "Spend today", money(day, found.day?.error), why(found.day) || day && [versus(against(day, yesterday), "against yesterday at this time"), !against(day, yesterday) && `since midnight, ${tz}`]),
      card("month", "Month to date", money(month, found.month?.error), why(found.month) || month && (month.invocations === 0 ? "no calls yet" : basis[month.cost.basis]),
        budgetsOf?.ofMonth(tz), month?.adjustments?.count > 0 && h("p", { class: "sub" }, `${count(month.adjustments.count)} adjustments: ${dollars(exact(month.adjustments.amount))}`)),
      card("range", "Spend in range", money(whole, found.main?.error), [versus(against(whole, earlier), "against the period before"), !earlier && rangeText()]),
      card("tokens", "Tokens in range", whole ? short(whole.inputTokens + whole.outputTokens) : "…", null, whole && h("dl", { class: "kinds" },
        [["input", whole.inputTokens], ["· cached", whole.cacheReadTokens], ["output", whole.outputTokens], ["· reasoning", whole.reasoningTokens]]
          .map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", { title: count(value) }, short(value)))))),
      card("requests", "Requests in range", whole ? count(whole.invocations) : "…", whole && earlier && versus(change(whole.invocations, earlier.invocations), "against before")),
      card("errors", "Error rate", found.reliability?.error && !reliable ? "–" : reliable ? percent(reliable.errorRate) : "…",
        found.reliability?.error?.status === 403 ? "needs analytics:reliability:read" : reliable && [count(failures(reliable)), ` ${failures(reliable) === 1 ? "call" : "calls"} failed`, earlierReliable && ` (${percent(earlierReliable.errorRate)} before)`]),
      card("p95", "Latency p95", reliable ? millis(reliable.latencyMs.p95) : found.reliability?.error ? "–" : "…",
        reliable && [`p50 ${millis(reliable.latencyMs.p50)} · p99 ${millis(reliable.latencyMs.p99)}`, earlierReliable && ` (p95 ${millis(earlierReliable.latencyMs.p95)} before)`]));
  }

  function rangeText() {
    const { start, end } = range(view);
    return `${stamp(start, zone(view))} to ${stamp(end, zone(view))}`;
  }

  function showSpend() {
    const held = found.main;
    if (!held?.data) {
      for (const chart of [spend, tokens]) chart.say(held?.error ? failure(held.error, () => load(true)) : h("p", { class: "loading", role: "status" }, "Loading …"));
      return;
    }
    const { starts, shown, tokensOf, final, provisionalFrom, granularity, tz } = seriesOf(held);
    const calls = totals(held).invocations;
    const more = { starts, granularity, tz, final, provisionalFrom, empty: calls > 0 ? "No call in this range has a price." : "No calls in this range." };
    const lines = shown.map((group, place) => ({
      name: group.name, tone: place === SERIES_SHOWN ? "rest" : place,
      values: group.amounts.map((amount) => (amount === null ? null : number(amount))),
      texts: group.amounts.map(digits), shows: group.amounts.map((amount) => (amount === null ? "" : dollars(amount))),
    }));
    if (found.before?.data) {
      const sums = buckets(before(held.span), granularity, tz).map(() => null);
      const at = new Map(buckets(before(held.span), granularity, tz).map((start, place) => [start, place]));
      for (const point of found.before.data.items) {
        const place = at.get(Date.parse(point.bucketStart));
        if (place !== undefined) sums[place] = add(sums[place], exact(point.cost.amount));
      }
      const fitted = starts.map((_, place) => sums[place] ?? null);
      lines.push({ name: "the period before", dashed: true, values: fitted.map((sum) => (sum === null ? null : number(sum))), texts: fitted.map(digits), shows: fitted.map((sum) => (sum === null ? "" : dollars(sum))) });
    }
    const file = `${org.slice(0, 8)}-${stamp(held.span.start, tz, { time: false })}`;
    spend.say(held.data.cut && h("p", { class: "sub" }, `Only the first ${count(POINTS_MAX)} points are drawn: choose longer buckets. The cards are of the whole range.`),
      provisionalFrom !== null && h("p", { class: "sub" }, h("span", { class: "swatch tint" }), " provisional: late calls may still change these buckets"));
    spend.show({ ...more, kind: "bars", series: lines, axis: (value) => `$${short(value)}`, text: (value) => `$${value}`, file: `spend-${file}.csv` });
    tokens.say();
    tokens.show({
      ...more, whole: true, kind: "bars", axis: short, text: count, file: `tokens-${file}.csv`,
      series: [["input", "input", 0], ["cached", "input, cached", 4], ["output", "output", 1], ["reasoning", "output, reasoning", 3]]
        .map(([key, label, tone]) => ({ name: label, tone, values: tokensOf[key] })),
    });
  }

  function showReliability() {
    const held = found.reliability;
    if (!held?.data) {
      for (const chart of [errors, latency]) {
        chart.element.hidden = held?.error?.status === 403;
        chart.say(held?.error ? failure(held.error, () => load(true)) : h("p", { class: "loading", role: "status" }, "Loading …"));
      }
      return;
    }
    const { span, granularity, tz, data } = held;
    const starts = buckets(span, granularity, tz);
    const places = new Map(starts.map((at, place) => [at, place]));
    const failed = Object.fromEntries(STATUSES.map(([key]) => [key, zeros(starts)]));
    const waits = { p50: nulls(starts), p95: nulls(starts), p99: nulls(starts) };
    const final = new Array(starts.length).fill(true);
    for (const point of data.series) {
      const at = Date.parse(point.bucketStart);
      const place = places.get(at) ?? nearest(starts, at);
      for (const [key] of STATUSES) failed[key][place] += point.errors[key];
      for (const key of Object.keys(waits)) waits[key][place] = point.latencyMs[key];
      final[place] = point.final;
    }
    const file = `${org.slice(0, 8)}-${stamp(span.start, tz, { time: false })}`;
    const more = { starts, granularity, tz, final };
    errors.say();
    latency.say();
    errors.show({ ...more, whole: true, kind: "bars", axis: short, text: count, file: `failed-${file}.csv`, empty: "No call in this range has failed.", series: STATUSES.map(([key, label, tone]) => ({ name: label, tone, values: failed[key] })) });
    latency.show({ ...more, kind: "lines", axis: millis, text: millis, file: `latency-${file}.csv`, empty: "No calls in this range.", series: [["p50", 0], ["p95", 1], ["p99", 2]].map(([key, tone]) => ({ name: key, tone, values: waits[key] })) });
  }

  function file(what) {
    return `${what}-${org.slice(0, 8)}-${stamp(range(view).start, zone(view), { time: false })}.csv`;
  }

  function tops() {
    const tables = [
      topTable({ id: "top-models", title: "Models", by: "model", held: () => found.models, failed: () => found.failed, whole: totals(found.models), file }),
      topTable({ id: "top-clients", title: "Clients", by: "client", file, held: () => found.clients, whole: totals(found.clients), note: wholeHours(range(view)) ? null : "whole hours" }),
      ...dimensions.map((one, place) => {
        const mine = () => found.dimensions && { ...found.dimensions, data: found.dimensions.data?.[place] };
        return topTable({ id: `top-${one.name}`, title: one.name[0].toUpperCase() + one.name.slice(1), by: one.name, file, held: mine, whole: mine()?.data?.first?.totals });
      }),
      codes(),
    ];
    fill(parts.tops, h("div", { class: "tops" }, tables));
  }

  function codes() {
    const list = found.reliability?.data?.errorCodes;
    if (!list) return null;
    const cells = () => [["errorCode", "status", "calls"], ...(found.reliability?.data?.errorCodes ?? []).map((one) => [one.errorCode, one.status, one.count])];
    return h("section", { class: "panel top", id: "top-codes", "aria-labelledby": "top-codes-title" }, h("header", {}, h("h2", { id: "top-codes-title" }, "Why calls failed"), csvButton("top-codes", "Why calls failed", () => file("codes"), cells)),
      list.length === 0 ? h("p", { class: "empty" }, "No call in this range has failed.")
        : h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Why calls failed: table" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Code"), h("th", { scope: "col" }, "Status"), h("th", { scope: "col", class: "figure" }, "Calls"))),
          h("tbody", {}, list.slice(0, 10).map((one) => h("tr", {}, h("th", { scope: "row" }, one.errorCode ?? "without a code"), h("td", {}, one.status), h("td", { class: "figure" }, count(one.count))))))));
  }

  // --- changing ---

  function go(values) {
    location.hash = changed(view, values).slice(1);
  }

  function change_(next) {
    view = next;
    element.dataset.view = location.hash;
    // Figures of the view before do not stand under the choices of this one.
    for (const key of ["main", "reliability", "before", "reliabilityBefore", "models", "clients", "failed", "dimensions", "day", "month", "yesterday"]) delete found[key];
    render();
    load(true, { another: true });
  }

  return {
    element, change: change_,
    redraw() { for (const chart of charts) chart.redraw(); },
    end() { ended.abort(); ear.abort(); round += 1; stop.abort(); tick.end(); timers.forEach(clearInterval); },
  };
}

const wholeHours = ({ start, end }) => start % 3_600_000 === 0 && end % 3_600_000 === 0;
const failures = ({ errors }) => errors.error + errors.timeout + errors.throttled;
const totals = (held) => held?.data?.first?.totals;
const versus = (text, what) => text && h("span", { class: "versus" }, text, ` ${what}`);

// It stays in its place while the times in it tick, so that it can be opened and read.
function freshnessBox() {
  const summary = h("summary", { id: "freshness" });
  return {
    summary,
    element: h("details", { class: "freshness" }, summary, h("div", { class: "panel explain" },
      h("p", {}, h("strong", {}, "Counted up to: "), "every call that reached the stream before this time is in the figures."),
      h("p", {}, h("strong", {}, "Complete up to: "), "no call from before this time is missing, unless it comes late. Ten seconds are allowed for calls that are on their way."),
      h("p", {}, h("strong", {}, "Provisional: "), "buckets with a tint may still change, because late calls are counted in their own time for a day. After that a bucket is final."))),
  };
}
