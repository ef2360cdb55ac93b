"use strict";

// Elements, numbers and plots: what page.js puts the runs into.

const place = (id) => document.getElementById(id);

const MARKS = [
  "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
  "M-3.6,-3.6h7.2v7.2h-7.2z",
  "M0,-5.2L5.2,0L0,5.2L-5.2,0z",
  "M0,-5L4.8,3.6H-4.8z",
  "M0,5L4.8,-3.6H-4.8z",
  "M-1.7,-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
  "M0,-5L4.8,-1.5L2.9,4.1H-2.9L-4.8,-1.5z",
  "M-4.8,-3L-3,-4.8L0,-1.8L3,-4.8L4.8,-3L1.8,0L4.8,3L3,4.8L0,1.8L-3,4.8L-4.8,3L-1.8,0z",
];
const LINE = 14; // pixels from one name to the next below it
const LETTER = 7; // of a name, about
const STAR = "M0,-8L1.9,-2.6L7.6,-2.5L3.1,1L4.7,6.5L0,3.2L-4.7,6.5L-3.1,1L-7.6,-2.5L-1.9,-2.6z";

// ---- elements: text only ever becomes text, never markup ----

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const legendMark = (colour, mark) =>
  draw("svg", { class: `mark ${colour}`, viewBox: "-7 -7 14 14", "aria-hidden": "true" }, draw("path", { d: mark }));

// ---- numbers ----

const rounded = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const whole = new Intl.NumberFormat("en");
const written = (value) => (Number.isInteger(value) ? whole : rounded).format(value);

function spoken(value) {
  if (value === null || value === "") return "–";
  if (Array.isArray(value)) return `${written(value[0])} (${written(value[1])} to ${written(value[2])})`;
  return typeof value === "number" ? written(value) : String(value);
}

function ticks(low, high, about) {
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step + 0); // -0 + 0 is 0
  return found;
}

function around(values, margin) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const pad = (high - low || Math.abs(high) || 1) * margin;
  return [low - pad, high + pad];
}

// As experiments.curves.measures.pareto: no other point is at least as good in both and not the same.
function front(points, lower) {
  const sign = lower ? 1 : -1;
  const beats = (a, b) =>
    (a.x[0] !== b.x[0] || a.y[0] !== b.y[0]) && a.x[0] <= b.x[0] && sign * a.y[0] <= sign * b.y[0];
  return points.filter((point) => !points.some((other) => beats(other, point)));
}

// ---- plots ----

// Draw series of points {x, y: [value, low, high], id, title, told}; `spec` has what differs from plot to plot.
function plot(spec) {
  const { width, height, series } = spec;
  const box = { left: spec.yLabel ? 62 : 46, right: width - 12, top: 10, bottom: height - (spec.xLabel ? 44 : 24) };
  const svg = draw("svg", {
    class: "plot",
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": spec.name,
    tabindex: spec.large ? "0" : null,
    ...spec.tags,
  });
  const points = series.flatMap((one) => one.points);
  const all = points.concat(series.flatMap((one) => [...one.nominal, ...one.stars]));
  if (!all.length) {
    svg.append(draw("text", { x: width / 2, y: height / 2, class: "nothing" }, "nothing to show"));
    return svg;
  }
  const scale = spec.log ? Math.log : (y) => y;
  const [x0, x1] = around(all.flatMap((p) => p.x).concat(spec.guide ?? []), 0.06);
  const [y0, y1] = around(all.flatMap((p) => p.y).concat(spec.level ?? []).map(scale), 0.08);
  const across = (x) => box.left + ((x - x0) / (x1 - x0)) * (box.right - box.left);
  const up = (y) => box.bottom - ((scale(y) - y0) / (y1 - y0)) * (box.bottom - box.top);
  svg.append(axes(spec, box, across, up, [x0, x1, y0, y1]));
  svg.append(...series.map((one) => curve(one, across, up)));
  const best = spec.lower === undefined ? [] : front(points, spec.lower);
  svg.append(...best.map((p) => draw("circle", { class: "ring", cx: across(p.x[0]), cy: up(p.y[0]), r: 7.5 })));
  if (spec.large) svg.append(...names(series, box, across, up));
  const placed = points.map((point) => ({ ...point, left: across(point.x[0]), top: up(point.y[0]) }));
  listen(svg, placed, spec.large);
  return svg;
}

function axes(spec, box, across, up, [x0, x1, y0, y1]) {
  const group = draw("g", { "aria-hidden": "true" });
  const line = (a, b, c, d, kind) => draw("line", { x1: a, y1: b, x2: c, y2: d, class: kind });
  for (const x of ticks(x0, x1, (box.right - box.left) / (spec.large ? 75 : 55))) {
    group.append(line(across(x), box.top, across(x), box.bottom, "grid"));
    group.append(draw("text", { x: across(x), y: box.bottom + 16, "text-anchor": "middle" }, written(x)));
  }
  for (const y of spec.log ?? ticks(y0, y1, (box.bottom - box.top) / (spec.large ? 42 : 30))) {
    group.append(line(box.left, up(y), box.right, up(y), "grid"));
    group.append(draw("text", { x: box.left - 6, y: up(y) + 4, "text-anchor": "end" }, written(y)));
  }
  if (spec.guide) group.append(line(across(spec.guide), box.top, across(spec.guide), box.bottom, "guide"));
  if (spec.level !== undefined) group.append(line(box.left, up(spec.level), box.right, up(spec.level), "guide"));
  const middle = (box.left + box.right) / 2;
  const label = { class: "label", "text-anchor": "middle" };
  if (spec.xLabel) group.append(draw("text", { ...label, x: middle, y: box.bottom + 36 }, spec.xLabel));
  const turned = `translate(14 ${(box.top + box.bottom) / 2}) rotate(-90)`;
  if (spec.yLabel) group.append(draw("text", { ...label, transform: turned }, spec.yLabel));
  return group;
}

function curve(one, across, up) {
  const group = draw("g", { class: `run ${one.colour}`, "data-run": one.label });
  const path = (points) => points.map((p, i) => `${i ? "L" : "M"}${across(p.x[0])},${up(p.y[0])}`).join("");
  const at = (p) => `translate(${across(p.x[0])} ${up(p.y[0])})`;
  if (one.nominal.length) {
    const faint = draw("g", { class: "nominal" }, draw("path", { class: "line", d: path(one.nominal) }));
    faint.append(...one.nominal.map((p) => draw("path", { class: "hollow", d: one.mark, transform: at(p) })));
    group.append(faint);
  }
  if (one.joined) group.append(draw("path", { class: "line", d: path(one.points) }));
  for (const { x, y } of one.points) {
    const bar = (a, b, c, d) => draw("line", { class: "bar", x1: a, y1: b, x2: c, y2: d });
    if (x[1] !== x[2]) group.append(bar(across(x[1]), up(y[0]), across(x[2]), up(y[0])));
    if (y[1] !== y[2]) group.append(bar(across(x[0]), up(y[1]), across(x[0]), up(y[2])));
  }
  group.append(...one.stars.map((p) => draw("path", { class: "star", d: STAR, transform: at(p) })));
  const point = (p) => draw("path", { class: "point", "data-id": p.id, d: one.mark, transform: at(p) });
  group.append(...one.points.map(point));
  return group;
}

// Each curve's name beside its end, one above the other where ends are near; the legend has the whole of a long one.
function names(series, box, across, up) {
  const ends = series.flatMap(({ label, colour, points }) => {
    const [x, y] = points.length ? [across(points.at(-1).x[0]), up(points.at(-1).y[0])] : [];
    return points.length ? [{ text: label.length > 32 ? `${label.slice(0, 30)}…` : label, colour, x, y: y - 8 }] : [];
  });
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => (end.y = Math.max(end.y, i ? ends[i - 1].y + LINE : box.top + LINE)));
  ends.reverse().forEach((end, i) => (end.y = Math.min(end.y, i ? ends[i - 1].y - LINE : box.bottom - 4)));
  return ends.map(({ text, colour, x, y }) => {
    const left = x + LETTER * text.length > box.right;
    const at = { x: left ? x - 9 : x + 9, y, "text-anchor": left ? "end" : "start" };
    return draw("text", { class: `name ${colour}`, "aria-hidden": "true", ...at }, text);
  });
}

// ---- what a point says ----

function listen(svg, points, large) {
  let current = -1;
  const order = [...points].sort((a, b) => a.left - b.left);
  const scale = () => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  const tellAt = (point) => {
    const box = svg.getBoundingClientRect();
    tell(point, box.left + point.left * scale(), box.top + point.top * scale());
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const far = (p) => Math.hypot(box.left + p.left * scale() - event.clientX, box.top + p.top * scale() - event.clientY);
    const near = points.reduce((best, p) => (best && far(best) <= far(p) ? best : p), null);
    if (near && far(near) < 24) tellAt(near);
    else hush();
  });
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hush());
  if (!large) return;
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hush();
    if (!step || !order.length) return;
    event.preventDefault();
    current = current < 0 && step < 0 ? order.length - 1 : (current + step + order.length) % order.length;
    tellAt(order[current]);
  });
  svg.addEventListener("blur", hush);
}

function tell(point, x, y) {
  const tip = place("tip");
  if (tip.dataset.of !== point.id || tip.hidden) {
    hush();
    const known = point.told.filter(([, value]) => value !== null);
    const pairs = known.flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, spoken(value))]);
    tip.replaceChildren(make("strong", {}, point.title), make("dl", {}, ...pairs));
    tip.dataset.of = point.id;
    document.querySelectorAll(`[data-id="${point.id}"]`).forEach((mark) => mark.classList.add("hot"));
  }
  tip.hidden = false;
  const room = { width: document.documentElement.clientWidth, height: innerHeight };
  const left = x + 14 + tip.offsetWidth < room.width ? x + 14 : x - 14 - tip.offsetWidth;
  tip.style.left = `${Math.max(8, Math.min(left, room.width - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(8, Math.min(y + 14, room.height - tip.offsetHeight - 8))}px`;
}

function hush() {
  place("tip").hidden = true;
  document.querySelectorAll(".hot").forEach((mark) => mark.classList.remove("hot"));
}
