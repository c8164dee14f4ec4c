// A chart is a figure with a legend, a table of the same figures and a file of them. uPlot draws; the table is for
// everybody who cannot or does not want to read bars.

import uPlot from "./uPlot.esm.js";
import { fill, h } from "./dom.js";
import { saveFile } from "./files.js";
import { bucket as bucketText, dayStart, instant, clock, monthStart, rfc3339, stamp } from "./format.js";

export const COLOURS = 8;
const ROWS_SHOWN = 400;
const WHOLE = [...Array(15).keys()].flatMap((power) => [1, 2, 5].map((first) => first * 10 ** power));

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The starts of all buckets of a range, in milliseconds: also of those without an event, which the API leaves out.
export function buckets({ start, end }, granularity, tz) {
  const found = [];
  if (granularity === "minute" || granularity === "hour") {
    const step = granularity === "minute" ? 60_000 : 3_600_000;
    for (let at = Math.floor(start / step) * step; at < end; at += step) found.push(at);
    return found;
  }
  let at = granularity === "month" ? monthStart(start, tz) : dayStart(start, tz);
  if (granularity === "week") at = dayStart(at, tz, -((new Date(at + zoneOff(at, tz)).getUTCDay() + 6) % 7));
  while (at < end) {
    found.push(at);
    if (granularity === "month") {
      const { year, month } = clock(at, tz);
      at = instant({ year: month === 12 ? year + 1 : year, month: month === 12 ? 1 : month + 1, day: 1 }, tz);
    } else at = dayStart(at, tz, granularity === "week" ? 7 : 1);
  }
  return found;
}

function zoneOff(at, tz) {
  const c = clock(at, tz);
  return Date.UTC(c.year, c.month - 1, c.day, c.hour, c.minute, c.second) - Math.floor(at / 1000) * 1000;
}

// The bars or lines of one figure. `show` takes
//   {starts, granularity, tz, kind: "bars" | "lines", series: [{name, values, texts?, tone, dashed?}], axis, text,
//    provisionalFrom, file, empty}
// `values` are numbers (or null) for drawing, `texts` what a table and a file say instead of them.
export class Chart {
  constructor({ id, title, note, tools = [] }) {
    this.id = id;
    this.plot = null;
    this.shown = null;
    this.canvas = h("div", { class: "canvas", role: "img", "aria-label": `${title}: not there yet` });
    this.tip = h("div", { class: "tip", hidden: true });
    this.legend = h("ul", { class: "legend" });
    this.note = h("p", { class: "note" });
    this.rows = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title}: table` });
    this.table = h("details", { class: "beside", ontoggle: () => this.tabulate() },
      h("summary", { id: `${id}-table` }, "Table"), this.rows);
    this.save = h("button", { type: "button", class: "quiet", id: `${id}-csv`, onclick: () => this.download(), "aria-label": `${title}: CSV of what is shown` }, "CSV");
    this.element = h("section", { class: "panel chart", id, "aria-labelledby": `${id}-title` },
      h("header", {}, h("div", {}, h("h2", { id: `${id}-title` }, title), note && h("p", { class: "sub" }, note)), h("div", { class: "tools" }, ...tools, this.save)),
      this.note, h("div", { class: "plot" }, this.canvas, this.tip), this.legend, this.table);
    this.title = title;
    this.resize = new ResizeObserver(() => this.fit());
    this.resize.observe(this.canvas);
  }

  say(...what) {
    fill(this.note, ...what);
  }

  show(data) {
    const before = this.shown;
    this.shown = data;
    const nothing = data.series.every((one) => one.values.every((value) => !value));
    this.element.classList.toggle("is-empty", nothing);
    fill(this.legend, data.series.map((one, place) =>
      h("li", {}, h("span", { class: `swatch tone-${one.tone ?? place % COLOURS}${one.dashed ? " dashed" : ""}` }), one.name)));
    if (nothing) {
      this.plot?.destroy();
      this.plot = null;
      this.canvas.setAttribute("aria-label", `${this.title}: ${data.empty}`);
      fill(this.canvas, h("p", { class: "empty" }, data.empty));
    } else {
      this.canvas.setAttribute("aria-label", `${this.title}, ${data.starts.length} buckets by ${data.granularity}; the table below has the figures.`);
      const alike = this.plot && before && before.kind === data.kind && before.tz === data.tz && before.granularity === data.granularity
        && before.theme === theme() && before.series.map((one) => one.name).join("\n") === data.series.map((one) => one.name).join("\n");
      if (alike) this.plot.setData(stacked(data));
      else this.draw();
    }
    data.theme = theme();
    if (this.table.open) this.tabulate();
  }

  redraw() {
    if (this.plot) this.draw();
  }

  draw() {
    const data = this.shown;
    this.plot?.destroy();
    this.canvas.replaceChildren();
    const began = performance.now();
    this.plot = new uPlot(options(data, this), stacked(data), this.canvas);
    this.drawnMs = performance.now() - began;
    this.element.dataset.drawnMs = this.drawnMs.toFixed(1);
  }

  fit() {
    if (!this.plot) return;
    const width = this.canvas.clientWidth;
    if (width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: height() });
  }

  // A cell of the table and of the file: the exact text where there is one.
  text(one, place) {
    if (one.texts) return one.texts[place] ?? "";
    return one.values[place] === null ? "" : String(one.values[place]);
  }

  tabulate() {
    if (!this.table.open || !this.shown) return;
    const { starts, series, tz, granularity, text } = this.shown;
    const places = starts.map((_, place) => place).filter((place) => series.some((one) => one.values[place])).reverse();
    const rows = places.slice(0, ROWS_SHOWN).map((place) => h("tr", {},
      h("th", { scope: "row" }, stamp(starts[place], tz, { time: granularity === "minute" || granularity === "hour" })),
      series.map((one) => h("td", {}, one.shows ? one.shows[place] : text(one.values[place])))));
    fill(this.rows, h("table", {},
      h("caption", { class: "unseen" }, `${this.title}, newest first`),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, `${granularity}, ${tz}`), series.map((one) => h("th", { scope: "col" }, one.name)))),
      h("tbody", {}, rows)),
    places.length > ROWS_SHOWN && h("p", { class: "sub" }, `${places.length - ROWS_SHOWN} older rows are in the CSV.`));
  }

  download() {
    if (!this.shown) return;
    const { starts, series, file } = this.shown;
    const head = ["bucketStart", ...series.map((one) => one.name)];
    const rows = starts.map((at, place) => [rfc3339(at), ...series.map((one) => this.text(one, place))]);
    saveFile(file, [head, ...rows]);
  }

  hover(plot) {
    const place = plot.cursor.idx;
    const { series, starts, tz, granularity, text, final } = this.shown;
    if (place === null || place === undefined || starts[place] === undefined) {
      this.tip.hidden = true;
      return;
    }
    const lines = series.map((one, i) => [one, i]).filter(([one]) => one.values[place]);
    fill(this.tip,
      h("strong", {}, bucketText(starts[place], tz, granularity)),
      final && !final[place] && h("em", {}, "provisional"),
      lines.length === 0 ? h("div", {}, "nothing") : lines.map(([one, i]) => h("div", { class: "line" },
        h("span", { class: `swatch tone-${one.tone ?? i % COLOURS}` }), h("span", {}, one.name), h("b", {}, one.shows ? one.shows[place] : text(one.values[place])))));
    this.tip.hidden = false;
    const left = plot.cursor.left + plot.bbox.left / devicePixelRatio;
    const right = left > plot.width / 2;
    this.tip.style.left = right ? "" : `${left + 14}px`;
    this.tip.style.right = right ? `${plot.width - left + 14}px` : "";
  }
}

export const theme = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
const height = () => (innerWidth < 640 ? 210 : 250);

// Stacked bars are drawn from the highest sum down, each in front of the one before.
function stacked({ starts, series, kind }) {
  const xs = starts.map((at) => at / 1000);
  if (kind !== "bars") return [xs, ...series.map((one) => one.values)];
  const sums = [];
  const running = new Array(xs.length).fill(0);
  for (const one of series) {
    if (one.dashed) sums.push(one.values);
    else sums.push(one.values.map((value, place) => (running[place] += value ?? 0)));
  }
  const bars = series.map((one, place) => [one, sums[place]]);
  return [xs, ...bars.filter(([one]) => !one.dashed).reverse().map(([, values]) => values), ...bars.filter(([one]) => one.dashed).map(([, values]) => values)];
}

function options(data, chart) {
  const { series, kind, tz, axis, granularity, starts } = data;
  const grid = { stroke: colour("--grid"), width: 1 };
  const ticks = { stroke: colour("--grid"), width: 1, size: 4 };
  const font = '12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
  const bars = uPlot.paths.bars({ size: [0.78, 96], align: 1, radius: data.starts.length > 120 ? 0 : 0.06 });
  const numbered = series.map((one, place) => ({ ...one, tone: one.tone ?? place % COLOURS }));
  const order = kind === "bars" ? [...numbered.filter((one) => !one.dashed).reverse(), ...numbered.filter((one) => one.dashed)] : numbered;
  const step = starts.length > 1 ? (starts.at(-1) - starts.at(-2)) / 1000 : 3600;
  return {
    width: Math.max(chart.canvas.clientWidth, 200),
    height: height(),
    legend: { show: false },
    cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
    padding: [10, 26, 0, 0], // on the right there is room for half a label: the last one may stand at the edge
    tzDate: (at) => uPlot.tzDate(new Date(at * 1000), tz),
    scales: {
      x: { time: true, range: () => [chart.shown.starts[0] / 1000, chart.shown.starts.at(-1) / 1000 + step * (kind === "bars" ? 1 : 0)] },
      y: { range: (_, __, most) => [0, most > 0 ? most * 1.08 : 1] },
    },
    axes: [
      { stroke: colour("--dim"), font, grid: { show: false }, ticks, space: 64, values: timeAxis(granularity), ...(fine(granularity) ? {} : { incrs: [1, 2, 3, 7, 14, 30, 60, 90, 180, 365].map((days) => days * 86_400) }) },
      { stroke: colour("--dim"), font, grid, ticks: { show: false }, size: 62, values: (_, splits) => splits.map(axis), ...(data.whole ? { incrs: WHOLE } : {}) },
    ],
    series: [
      {},
      ...order.map((one) => {
        const paint = colour(`--tone-${one.tone}`);
        if (one.dashed) return { label: one.name, stroke: colour("--dim"), width: 1.5, dash: [5, 4], points: { show: false }, spanGaps: true };
        if (kind === "bars") return { label: one.name, fill: paint, stroke: paint, width: 0, paths: bars, points: { show: false } };
        return { label: one.name, stroke: paint, width: 2, spanGaps: true, points: { show: starts.length < 60, size: 5, fill: paint } };
      }),
    ],
    hooks: {
      drawClear: [(plot) => shade(plot, data, chart)],
      setCursor: [(plot) => chart.hover(plot)],
      ready: [(plot) => plot.over.addEventListener("mouseleave", () => { chart.tip.hidden = true; })],
    },
  };
}

const fine = (granularity) => granularity === "minute" || granularity === "hour";
const timeAxis = (granularity) => (fine(granularity)
  ? [[86_400, "{D} {MMM}", null, null, null, null, null, null, 1], [3600, "{HH}:{mm}", null, null, "\n{D} {MMM}", null, null, null, 1], [60, "{HH}:{mm}", null, null, "\n{D} {MMM}", null, null, null, 1]]
  : [[86_400 * 365, "{YYYY}", null, null, null, null, null, null, 1], [86_400 * 30, "{MMM}", "\n{YYYY}", null, null, null, null, null, 1], [3600, "{D} {MMM}", "\n{YYYY}", null, null, null, null, null, 1]]);

// What is provisional has a tint behind it: late events may still change these buckets.
function shade(plot, _, chart) {
  const from = chart.shown.provisionalFrom;
  if (from === null || from === undefined) return;
  const { left, top, width, height: tall } = plot.bbox;
  const x = Math.max(plot.valToPos(from / 1000, "x", true), left);
  if (x >= left + width) return;
  plot.ctx.save();
  plot.ctx.fillStyle = colour("--tint");
  plot.ctx.fillRect(x, top, left + width - x, tall);
  plot.ctx.restore();
}
