// What a chart draws, made of the points of an answer. Amounts are added as they are, and become floats only for the
// height of a bar.

import { buckets } from "./charts.js";
import { add, exact } from "./format.js";
import { groupKey, groupName } from "./parts.js";

export const SERIES_SHOWN = 7; // and the rest together

// The points of an answer by bucket: amounts of each group, the biggest first and the small ones together, tokens of
// each kind, and from where on figures are provisional.
export function seriesOf(held) {
  const { span, granularity, tz, by, data } = held;
  const starts = buckets(span, granularity, tz);
  const places = new Map(starts.map((at, place) => [at, place]));
  const groups = new Map();
  const final = new Array(starts.length).fill(true);
  const tokensOf = { input: zeros(starts), cached: zeros(starts), output: zeros(starts), reasoning: zeros(starts) };
  let provisionalFrom = null;
  for (const point of data.items) {
    const at = Date.parse(point.bucketStart);
    const place = places.get(at) ?? nearest(starts, at);
    const key = groupKey(by, point);
    if (!groups.has(key)) groups.set(key, { name: groupName(by, point), total: 0n, amounts: new Array(starts.length).fill(null) });
    const group = groups.get(key);
    const amount = exact(point.cost.amount);
    group.amounts[place] = add(group.amounts[place], amount);
    group.total = add(group.total, amount);
    tokensOf.cached[place] += point.cacheReadTokens;
    tokensOf.input[place] += point.inputTokens - point.cacheReadTokens;
    tokensOf.reasoning[place] += point.reasoningTokens;
    tokensOf.output[place] += point.outputTokens - point.reasoningTokens;
    if (!point.final) {
      final[place] = false;
      if (provisionalFrom === null || starts[place] < provisionalFrom) provisionalFrom = starts[place];
    }
  }
  const ordered = [...groups.values()].sort((a, b) => (a.total < b.total ? 1 : a.total > b.total ? -1 : a.name < b.name ? -1 : 1));
  const shown = ordered.slice(0, SERIES_SHOWN);
  if (ordered.length > SERIES_SHOWN) {
    const rest = { name: `${ordered.length - SERIES_SHOWN} others`, amounts: new Array(starts.length).fill(null) };
    for (const group of ordered.slice(SERIES_SHOWN)) group.amounts.forEach((amount, place) => { rest.amounts[place] = add(rest.amounts[place], amount); });
    shown.push(rest);
  }
  return { starts, shown, tokensOf, final, provisionalFrom, granularity, tz };
}

export const zeros = (starts) => new Array(starts.length).fill(0);
export const nulls = (starts) => new Array(starts.length).fill(null);

// The first bucket of a range may begin before the range does.
export function nearest(starts, at) {
  let place = 0;
  while (place + 1 < starts.length && starts[place + 1] <= at) place += 1;
  return place;
}
