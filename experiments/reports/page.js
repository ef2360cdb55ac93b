"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

// What the reader chose; the fragment of the URL says the same, so that a view can be linked.
const state = { metric: "", cost: "", hidden: new Set(), sorts: {} };

const COLOURS = 8;

// ---- the runs as plots ----

function seriesOf(metric, cost) {
  return data.runs.flatMap((run, i) => {
    if (state.hidden.has(run.label)) return [];
    const points = run.points.map((point, j) => ({
      id: `${i}.${j}`,
      title: `${run.label}: ${point.name}`,
      told: data.columns.map((column, k) => [column, point.values[k]]),
      x: point.cost[cost],
      y: point.quality[metric],
      nominal: point.nominal[cost],
    }));
    const star = run.stars[`${metric} ${cost}`];
    return [
      {
        label: run.label,
        ...look(i),
        joined: true,
        points: points.filter((p) => p.x && p.y),
        nominal: points.filter((p) => p.nominal && p.y).map((p) => ({ x: p.nominal, y: p.y.slice(0, 1) })),
        stars: star ? [{ x: [star[0]], y: [star[1]] }] : [],
      },
    ];
  });
}

const look = (i) => ({
  colour: `c${i % COLOURS}${i < COLOURS ? "" : " second"}`,
  mark: MARKS[(i + Math.floor(i / COLOURS)) % MARKS.length],
});

function ours(metric, cost, more) {
  return plot({
    series: seriesOf(metric.key, cost.key),
    lower: metric.lower,
    guide: cost.key === "time" ? 1 : undefined,
    level: metric.difference ? 0 : undefined,
    name: `${metric.label} against ${cost.label}`,
    tags: { "data-metric": metric.key, "data-cost": cost.key },
    ...more,
  });
}

// ---- tables ----

const first = (value) => (Array.isArray(value) ? value[0] : value);

// Numbers by value; names by what stands before their last number, then by that; what is missing, last either way.
function compare(a, b, sign) {
  const [one, two] = [first(a), first(b)];
  const missing = (one === null) - (two === null);
  if (missing || one === null) return missing;
  if (typeof one === "number" && typeof two === "number") return sign * (one - two);
  const parts = [one, two].map((text) => /^(.*?)(\d+(?:\.\d+)?(?:e[+-]?\d+)?)?$/s.exec(String(text)));
  return sign * (parts[0][1].localeCompare(parts[1][1]) || (parts[0][2] ?? -1) - (parts[1][2] ?? -1));
}

function table(spec) {
  const [key, sign] = state.sorts[spec.key] ?? [];
  const column = spec.keys.indexOf(key);
  const shown = spec.rows.filter((row) => spec.key !== "points" || !state.hidden.has(row[0]));
  const rows = column < 0 ? shown : [...shown].sort((a, b) => compare(a[column], b[column], sign));
  const numeric = spec.keys.map((_, i) => !spec.rows.some((row) => typeof first(row[i]) === "string"));
  const headings = spec.headings.map((text, i) => {
    const order = i === column ? (sign > 0 ? "ascending" : "descending") : "none";
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => sortBy(spec, spec.keys[i]));
    return make("th", { scope: "col", "aria-sort": order, class: numeric[i] ? "number" : null }, button);
  });
  const body = rows.map((row) => make("tr", {}, ...row.map((value, i) => cell(value, i, numeric[i]))));
  const head = make("thead", {}, make("tr", {}, ...headings));
  return make("table", { "data-table": spec.key }, head, make("tbody", {}, ...body));
}

function cell(value, i, numeric) {
  const interval = Array.isArray(value) ? [make("small", {}, `${written(value[1])}–${written(value[2])}`)] : [];
  const text = spoken(first(value));
  const kind = numeric ? "number" : text.length > 36 ? "long" : null;
  return make(i ? "td" : "th", { scope: i ? null : "row", class: kind }, text, ...interval);
}

function sortBy(spec, key) {
  const [old, sign] = state.sorts[spec.key] ?? [];
  state.sorts[spec.key] = [key, old === key ? -sign : 1];
  remember();
  showTable(spec);
  const at = spec.keys.indexOf(key);
  place(`table-${spec.key}`).querySelectorAll("thead button")[at].focus();
}

const showTable = (spec) => place(`table-${spec.key}`).replaceChildren(table(spec));

// ---- the URL's fragment ----

function recall() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const one = (list, key) => (list.find((each) => each.key === key) ?? list[0])?.key;
  state.metric = one(data.metrics, asked.get("metric"));
  state.cost = one(data.costs, asked.get("cost") ?? "time");
  state.hidden = new Set(asked.getAll("hide"));
  state.sorts = {};
  for (const { key, keys } of data.tables) {
    const [column, order] = (asked.get(`sort-${key}`) ?? "").split(".");
    if (keys.includes(column)) state.sorts[key] = [column, order === "descending" ? -1 : 1];
  }
}

function remember() {
  const told = new URLSearchParams({ metric: state.metric, cost: state.cost });
  for (const label of state.hidden) told.append("hide", label);
  for (const [key, [column, sign]] of Object.entries(state.sorts)) {
    told.set(`sort-${key}`, `${column}.${sign > 0 ? "ascending" : "descending"}`);
  }
  history.replaceState(null, "", `#${told}`);
}

// ---- the page ----

function showLarge() {
  const width = Math.max(300, Math.min(place("large").clientWidth, 1000));
  const metric = data.metrics.find((each) => each.key === state.metric);
  const cost = data.costs.find((each) => each.key === state.cost);
  const size = { width, height: Math.max(280, Math.min(0.5 * width, 460)) };
  const labels = { xLabel: cost.label, yLabel: metric.label, large: true };
  place("large").replaceChildren(ours(metric, cost, { ...size, ...labels }));
  place("metric").value = state.metric;
  place("cost").value = state.cost;
}

function choose(change) {
  Object.assign(state, change);
  remember();
  show();
}

function small(metric, cost) {
  const button = make("button", { type: "button", title: "show large" }, cost.label);
  button.addEventListener("click", () => {
    choose({ metric: metric.key, cost: cost.key });
    place("large").scrollIntoView({ block: "center" });
  });
  const chosen = metric.key === state.metric && cost.key === state.cost;
  const picture = ours(metric, cost, { width: 250, height: 195 });
  return make("figure", { "aria-current": chosen ? "true" : null }, picture, make("figcaption", {}, button));
}

function legend() {
  return data.runs.map((run, i) => {
    const { colour, mark } = look(i);
    const pressed = String(!state.hidden.has(run.label));
    const button = make("button", { type: "button", "aria-pressed": pressed }, legendMark(colour, mark), run.label);
    button.addEventListener("click", () => {
      if (!state.hidden.delete(run.label)) state.hidden.add(run.label);
      choose({});
      place("legend").children[i].focus();
    });
    return button;
  });
}

function published(label, column) {
  const series = data.paper.curves.map((one, i) => ({
    ...one,
    colour: "grey",
    mark: MARKS[i % MARKS.length],
    nominal: [],
    stars: [],
    points: one.points.map(([name, parameters, macs, per], j) => ({
      id: `paper.${i}.${j}`,
      title: `${one.label}: ${name}`,
      told: [["parameters (million)", parameters], ["MACs (G/s)", macs], ["PER (%)", per], ["source", "the paper"]],
      x: [column === "macs" ? macs : parameters],
      y: [per],
    })),
  }));
  const tags = { "data-metric": "per", "data-cost": column };
  const size = { width: 420, height: 310, log: [7, 8, 10, 15, 20, 40] };
  return plot({ series, name: `PER against ${label}`, xLabel: label, yLabel: "PER (%), log scale", tags, ...size });
}

function show() {
  hush();
  place("legend").replaceChildren(...legend());
  showLarge();
  const rows = data.metrics.map((metric) => {
    const plots = data.costs.map((cost) => small(metric, cost));
    return make("div", {}, make("h3", {}, metric.label), make("div", { class: "plots" }, ...plots));
  });
  place("all").replaceChildren(...rows);
  data.tables.forEach(showTable);
}

function build() {
  const items = (list) => list.map((text) => make("li", {}, text));
  place("notes").append(...items(data.notes));
  place("told").append(...items(data.told));
  place("commands").append(...items(data.commands));
  for (const [id, list] of [["metric", data.metrics], ["cost", data.costs]]) {
    place(id).append(...list.map(({ key, label }) => make("option", { value: key }, label)));
    place(id).addEventListener("change", (event) => choose({ [id]: event.target.value }));
  }
  for (const { key, title } of data.tables) {
    const heading = make("h2", { id: `heading-${key}` }, title);
    const frame = { class: "scroll", id: `table-${key}`, tabindex: "0", role: "region" };
    place("tables").append(heading, make("div", { ...frame, "aria-labelledby": heading.id }));
  }
  place("paper-source").textContent = `${data.paper.label}: ${data.paper.source}.`;
  place("paper").append(published("parameters (million)", "parameters"), published("MACs (G / s of speech)", "macs"));
  const key = ({ label }, i) => make("li", {}, legendMark("grey", MARKS[i % MARKS.length]), label);
  place("paper-key").append(...data.paper.curves.map(key));
}

function start() {
  recall();
  show();
}

build();
start();
addEventListener("hashchange", start);
addEventListener("resize", showLarge);
addEventListener("scroll", hush, { passive: true });
