"use strict";
// Draws the plots with Plotly from the page's data, each one when it comes near the window.

const page = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 40rem)");
const drawn = new Map(); // by id: a function that draws the plot again
const SERIES = {
  light: ["#2563b0", "#d9622b", "#2f8f5b", "#8a4fb0", "#b58900", "#c0392b", "#148a9c", "#6b7280"],
  dark: ["#6ea8f0", "#f0915c", "#5fc08d", "#bd8ae0", "#d9b340", "#ef7f73", "#53bfd0", "#a3abb8"],
};
const STATUS = { complete: null, "stopped early": "#8a929d", failed: "#d1495b", running: "#d99a2b" };
const MANY = 100; // curves from which a marker an epoch would slow the browser down

const theme = () => (dark.matches ? "dark" : "light");

function template() {
  const style = getComputedStyle(document.documentElement);
  const [card, ink, soft, line] = ["--card", "--ink", "--soft", "--line"].map((name) =>
    style.getPropertyValue(name).trim());
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true,
    title: { standoff: 8 }, ticklabelstandoff: 4 };
  return { layout: {
    paper_bgcolor: card, plot_bgcolor: card, colorway: SERIES[theme()],
    font: { family: "system-ui, sans-serif", size: 13, color: soft },
    xaxis: axis, yaxis: axis, margin: { l: 56, r: 12, t: 36, b: 48 }, hovermode: "closest",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: ink } },
    hoverlabel: { bgcolor: card, bordercolor: soft, align: "left", font: { color: ink } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
  } };
}

function legible() { // texts of parallel coordinates, which stand on their lines
  const color = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  return { tickfont: { color, size: 12 }, rangefont: { color, size: 11 }, labelfont: { color, size: 13 } };
}

const names = page.names.map(() => new Map()); // those that were asked for, by sweep

function name_of(sweep, place) {
  if (!names[sweep].has(place)) {
    const lines = page.names[sweep][place].split("\n");
    names[sweep].set(place, [`<b>${lines[0]}</b>`, ...lines.slice(1)].join("<br>"));
  }
  return names[sweep].get(place);
}

function named(trace) { // the trials' names are on the page once, not in every trace
  if (trace.type === "parcoords") return { ...trace, ...legible() };
  if (!trace.customdata) return trace;
  const text = trace.customdata.map((place) => name_of(trace.meta, place));
  return { ...trace, text, hovertemplate: "%{text}<extra></extra>", hoverlabel: { namelength: -1 } };
}

function scaled(axis, logarithmic, values) { // ticks at 1, 2, 5 where the labels of all would meet
  const positive = values.filter((value) => value > 0);
  const [low, high] = positive.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, 0]);
  const apart = logarithmic && high / low > 10 && high / low < 1e4;
  return { ...axis, type: logarithmic ? "log" : "linear", ...(apart && { dtick: narrow.matches ? 1 : "D2" }) };
}

function show(element, data, layout, state) {
  const whole = { ...layout, template: template(), uirevision: JSON.stringify(state) };
  const options = { responsive: true, displaylogo: false, displayModeBar: !narrow.matches,
    plotlyServerURL: "", // and no button that sends a plot to Plotly's servers
    modeBarButtonsToRemove: ["sendChartToCloud", "lasso2d", "select2d", "zoomIn2d", "zoomOut2d"] };
  return Plotly.react(element, data.map(named), whole, options);
}

function control(element, label, input, changed) {
  const box = document.createElement("label");
  input.ariaLabel = label;
  box.append(...(input.type === "checkbox" ? [input, label] : [label, input]));
  input.addEventListener(input.type === "search" ? "input" : "change", changed);
  document.getElementById(`${element.id}-controls`).append(box);
  return input;
}

function choice(options) {
  const select = document.createElement("select");
  options.forEach((text, place) => select.append(new Option(plain(text), place)));
  return select;
}

function field(type, properties) {
  return Object.assign(document.createElement("input"), { type }, properties);
}

function plain(text) { // what a reader sees of a text that is escaped for Plotly
  return new DOMParser().parseFromString(text, "text/html").body.textContent;
}

function viewed(element, spec) { // a plot of one or several views, with axes that can be logarithmic
  const state = { view: 0 };
  const scales = spec.views[0].data.every((trace) => trace.customdata || trace.hoverinfo === "skip");
  const at_first = () => ["xaxis", "yaxis"].forEach((axis) => {
    state[axis] = spec.views[state.view].layout[axis]?.type === "log";
  });
  at_first();
  const redraw = () => {
    const view = spec.views[state.view];
    const layout = { ...view.layout };
    if (scales) for (const axis of ["xaxis", "yaxis"]) {
      layout[axis] = scaled(layout[axis], state[axis], view.data.flatMap((trace) => trace[axis[0]]));
    }
    if (view.width) element.style.minWidth = `${view.width}px`;
    return show(element, view.data, layout, state);
  };
  const boxes = {};
  if (spec.views.length > 1) {
    const select = control(element, "against", choice(spec.views.map((view) => view.label)), () => {
      state.view = Number(select.value);
      at_first();
      for (const axis in boxes) boxes[axis].checked = state[axis];
      redraw();
    });
  }
  if (scales) for (const axis of ["xaxis", "yaxis"]) {
    const label = `logarithmic ${axis[0]}`;
    boxes[axis] = control(element, label, field("checkbox", { checked: state[axis] }), () => {
      state[axis] = boxes[axis].checked;
      redraw();
    });
  }
  return redraw;
}

function curved(element, spec) { // learning curves: a trace a group, and the one that is pointed at
  const state = { by: "status", text: "" };
  const names = page.names[spec.sweep];
  const note = document.getElementById(`${element.id}-note`);
  const percent = (parts) => (parts === null ? null : parts / spec.parts);
  const longest = Math.max(...spec.curves.map(([, values]) => values.length));
  let texts = null; // made when somebody first types: 2,000 of them take a while
  let last = 0;
  const redraw = () => {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) texts ??= spec.curves.map(([place]) => plain(names[place]).toLowerCase());
    const matching = spec.curves.map((_, at) => at)
      .filter((at) => words.every((word) => texts[at].includes(word)));
    const shown = spread(matching, spec.drawn);
    const many = shown.length > MANY;
    const traces = new Map();
    for (const at of shown) {
      const [place, values] = spec.curves[at];
      const name = spec.groups[state.by][at];
      if (!traces.has(name)) {
        const color = state.by === "status" ? STATUS[name] ?? SERIES[theme()][0] : undefined;
        traces.set(name, { type: "scatter", mode: many && longest > 1 ? "lines" : "lines+markers", name,
          x: [], y: [], customdata: [], meta: spec.sweep, opacity: many ? 0.4 : 0.75,
          marker: { size: longest > 1 ? 3 : 6, color }, line: { width: many ? 1 : 1.3, color } });
      }
      const trace = traces.get(name);
      values.forEach((value, epoch) => {
        trace.x.push(epoch + 1);
        trace.y.push(percent(value));
        trace.customdata.push(place);
      });
      trace.x.push(null);
      trace.y.push(null);
      trace.customdata.push(place);
    }
    note.textContent = `${shown.length.toLocaleString("en")} of ${spec.of.toLocaleString("en")} curves drawn`
      + (words.length ? `; ${matching.length.toLocaleString("en")} match` : "")
      + (spec.curves.length < spec.of ? `; the page holds ${spec.curves.length.toLocaleString("en")}` : "");
    const order = Object.keys(STATUS);
    const data = [...traces.values()].sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
    last = data.length;
    const pointed = { type: "scatter", mode: "lines", x: [], y: [], hoverinfo: "skip",
      showlegend: false, line: { width: 3, color: "#e8590c" } };
    return show(element, [...data, pointed], spec.layout, state);
  };
  if (Object.keys(spec.groups).length > 1) {
    const groups = Object.keys(spec.groups);
    const select = control(element, "color by", choice(groups), () => {
      state.by = groups[Number(select.value)];
      redraw();
    });
  }
  const filter = control(element, "filter", field("search", { placeholder: "such as trial 12" }), () => {
    state.text = filter.value;
    redraw();
  });
  const by_place = new Map(spec.curves);
  let pointed = null;
  const listen = () => element.on("plotly_hover", (event) => {
    const place = event.points[0].customdata;
    const values = by_place.get(place);
    if (place === pointed || !values) return;
    pointed = place;
    Plotly.restyle(element, { x: [values.map((_, epoch) => epoch + 1)], y: [values.map(percent)] }, [last]);
  });
  let heard = false;
  return () => redraw().then(() => {
    if (!heard) listen();
    heard = true;
  });
}

function spread(items, most) { // the first few, which are the front's, and others evenly
  if (items.length <= most) return items;
  const first = items.slice(0, most / 5);
  const rest = items.slice(first.length);
  const room = most - first.length;
  return [...first, ...Array.from({ length: room }, (_, i) => rest[Math.floor((i * rest.length) / room)])];
}

function draw(element) {
  if (!drawn.has(element.id)) {
    const spec = page.plots[element.id];
    drawn.set(element.id, spec.views ? viewed(element, spec) : curved(element, spec));
  }
  return drawn.get(element.id)();
}

// Parallel coordinates hold three WebGL contexts each, and a browser lends 16 to a page: of many,
// those out of sight are taken down.
const parallel = Object.keys(page.plots).filter((id) => id.startsWith("parallel"));
const lent = new Set(parallel.length > 5 ? parallel : []);

function take_down(element) {
  element.querySelectorAll("canvas").forEach((canvas) =>
    canvas.getContext("webgl")?.getExtension("WEBGL_lose_context")?.loseContext());
  Plotly.purge(element);
}

const near = new IntersectionObserver((entries) => {
  const fresh = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
  entries.filter((entry) => !entry.isIntersecting && entry.target.data)
    .forEach((entry) => take_down(entry.target));
  fresh.filter((element) => !lent.has(element.id)).forEach((element) => near.unobserve(element));
  Promise.all(fresh.map(draw)).then(() => {
    document.documentElement.dataset.ready ??= Math.round(performance.now());
  });
}, { rootMargin: "200px" });
document.querySelectorAll(".plot").forEach((element) => near.observe(element));
dark.addEventListener("change", () => drawn.forEach((redraw, id) => {
  if (document.getElementById(id).data) redraw();
}));
addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(draw));

// --- Tables: a click on a head sorts, numbers as numbers, missing ones last ----------------------

const number = (text) => parseFloat(text.replace(/^[×+]\s*/, "").replace("−", "-").replaceAll(",", ""));

function sort(head) {
  const up = head.ariaSort !== "ascending";
  head.parentNode.childNodes.forEach((other) => { other.ariaSort = null; });
  head.ariaSort = up ? "ascending" : "descending";
  const body = head.closest("table").tBodies[0];
  const texts = !head.classList.contains("t");
  const keyed = [...body.rows].map((row) => [row, row.cells[head.cellIndex].textContent]);
  const missing = (text) => text === "–" || text === "";
  keyed.sort(([, a], [, b]) => missing(a) - missing(b)
    || (up ? 1 : -1) * (texts ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true })) || 0);
  body.append(...keyed.map(([row]) => row));
}

document.querySelectorAll("th").forEach((head) => {
  head.tabIndex = 0;
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(head); });
});
