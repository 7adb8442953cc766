"use strict";
const data = JSON.parse(document.getElementById("figures").textContent);
const at = (id) => document.getElementById(id);
const LIGHT = ["#0072b2", "#d55e00", "#007a5a", "#a8377f", "#8a6d00", "#2a8cc4", "#6b4fbb", "#5a6570"];
const DARK = ["#5ab4f0", "#ff9a52", "#3ddc9b", "#f29ccf", "#f0c445", "#8fd3ff", "#b9a3ff", "#b4bec8"];
const agents = [...new Set(data.rows.map((row) => row.agent))];
const tasks = [...new Set(data.rows.map((row) => `${row.task}, ${row.split}`))];
const state = { task: tasks[0], lambda: 0, sort: "reward", down: true, filter: "" };
const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;

function interval(values) {  // the mean with its 95 % Student-t interval
  const middle = mean(values), count = values.length;
  if (count < 2) return [middle, null];
  const variance = values.reduce((sum, one) => sum + (one - middle) ** 2, 0) / (count - 1);
  return [middle, data.t[Math.min(count - 1, data.t.length - 1)] * Math.sqrt(variance / count)];
}
const reward = (row) => interval(row.seeds.map(([accuracy, macs]) => accuracy - state.lambda * macs));
const here = () => data.rows.filter((row) => `${row.task}, ${row.split}` === state.task);
const dark = () => document.documentElement.dataset.theme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
const colour = (agent) => (dark() ? DARK : LIGHT)[agents.indexOf(agent) % LIGHT.length];
const faint = (agent) => colour(agent) + "2e";

function element(name, text, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  if (text !== undefined) made.textContent = text;
  return made;
}
function draw(id, traces, x, y, shapes = []) {
  const style = getComputedStyle(document.documentElement), text = style.getPropertyValue("--text"), line = style.getPropertyValue("--line");
  const axis = (title) => ({ title: { text: title }, gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true });
  Plotly.react(id, traces, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, family: "system-ui, sans-serif", size: 13 },
    margin: { l: 50, r: 10, t: 10, b: 90 }, xaxis: axis(x), yaxis: axis(y), shapes: shapes.map((one) => ({ ...one, line: { color: text, width: 1, dash: "dot" } })),
    legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" }, hovermode: "closest",
  }, { responsive: true, displayModeBar: false, displaylogo: false });
}
function band(x, low, high, agent) {
  return { x: [...x, ...x.slice().reverse()], y: [...high, ...low.slice().reverse()], fill: "toself", fillcolor: faint(agent), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, legendgroup: agent };
}
function tradeoff(id, rows, xOf, xTitle, shapes) {
  const traces = [];
  for (const agent of agents) {
    const own = rows.filter((row) => row.agent === agent && xOf(row)).sort((a, b) => xOf(a)[0] - xOf(b)[0]);
    if (!own.length) continue;
    const best = own.reduce((a, b) => (reward(b)[0] > reward(a)[0] ? b : a));
    const x = own.map((row) => xOf(row)[0]), y = own.map((row) => 100 * row.figures.accuracy[0]);
    const half = own.map((row) => 100 * (row.figures.accuracy[1] || 0));
    if (own.length > 1) traces.push(band(x, y.map((one, k) => one - half[k]), y.map((one, k) => one + half[k]), agent));
    traces.push({
      x, y, name: agent, legendgroup: agent, mode: own.length > 1 ? "lines+markers" : "markers", line: { color: colour(agent), width: 2 },
      error_y: { array: half, thickness: 1, width: 3, color: colour(agent) }, error_x: { array: own.map((row) => xOf(row)[1] || 0), thickness: 1, width: 3, color: colour(agent) },
      marker: { color: colour(agent), size: 8, symbol: own.map((row) => (row === best ? "circle-open-dot" : "circle")), line: { width: 2 } },
      text: own.map((row) => row.point), hovertemplate: `${agent}, %{text}<br>%{y:.2f} % at %{x:.3f}<extra></extra>`,
    });
    traces.at(-1).marker.size = own.map((row) => (row === best ? 15 : 8));
  }
  draw(id, traces, xTitle, "accuracy in %", shapes);
}
function charts() {
  const rows = here();
  const dense = { type: "line", xref: "paper", x0: 0, x1: 1, y0: 100 * rows[0].dense_accuracy, y1: 100 * rows[0].dense_accuracy };
  tradeoff("macs-chart", rows, (row) => row.figures.total_mac_share, "total MACs / MACs of the dense network", [dense]);
  const timed = rows.filter((row) => row.times);
  at("time-section").hidden = !timed.length;
  if (!timed.length) return;
  const slow = timed[0].times.dense_milliseconds;
  tradeoff("time-chart", timed, (row) => row.times && [row.times.milliseconds, 0], "milliseconds", [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: slow, x1: slow }]);
}

const percent = (pair) => (pair ? [100 * pair[0], pair[1] === null ? null : 100 * pair[1], 2] : null);
const plain = (pair, digits) => (pair ? [...pair, digits] : null);
const COLUMNS = [
  ["agent", (row) => row.agent], ["point", (row) => row.point], ["reward", (row) => plain(reward(row), 4)], ["outcome", (row) => row.outcome || (row.reference ? "reference" : "")],
  ["accuracy", (row) => percent(row.figures.accuracy)], ["total MACs", (row) => plain(row.figures.total_mac_share, 3)],
  ["ms", (row) => row.times && [row.times.milliseconds, null, 3]], ["dense ms", (row) => row.times && [row.times.dense_milliseconds, null, 3]],
  ["static", (row) => percent(row.figures.static_accuracy)], ["shuffled", (row) => percent(row.figures.shuffled_accuracy)], ["seeds", (row) => [row.seeds.length, null, 0]], ["validated", (row) => `${row.validated} of ${row.seeds.length}`],
];
if (data.rows.some((row) => row.figures.task_reward)) COLUMNS.splice(3, 0, ["task's reward", (row) => plain(row.figures.task_reward, 4)]);
const key = (value) => (Array.isArray(value) ? value[0] : value);

function table() {
  const head = element("tr");
  for (const [name] of COLUMNS) {
    const sorted = state.sort === name, cell = element("th", undefined, { scope: "col" });
    cell.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
    const button = element("button", name + (sorted ? (state.down ? " ▾" : " ▴") : ""), { type: "button" });
    button.onclick = () => { state.down = sorted ? !state.down : true; state.sort = name; table(); [...at("table").tHead.querySelectorAll("button")].find((one) => one.textContent.startsWith(name)).focus(); };
    cell.append(button); head.append(cell);
  }
  at("table").tHead.replaceChildren(head);
  const of = COLUMNS.find(([name]) => name === state.sort)[1], way = state.down ? -1 : 1;
  const wanted = state.filter.toLowerCase().split(/\s+/).filter(Boolean), all = here();
  const shown = all.filter((row) => wanted.every((word) => `${row.agent} ${row.point} ${row.outcome}`.toLowerCase().includes(word)));
  shown.sort((a, b) => { const [x, y] = [key(of(a)), key(of(b))]; return x === null || x === undefined ? 1 : y === null || y === undefined ? -1 : x < y ? -way : x > y ? way : 0; });
  const top = Math.max(...all.map((row) => reward(row)[0]));
  at("table").tBodies[0].replaceChildren(...shown.map((row) => {
    const line = element("tr", undefined, { className: reward(row)[0] === top ? "best" : "" });
    for (const [, value] of COLUMNS) {
      const found = value(row), cell = element("td");
      if (Array.isArray(found)) {
        cell.textContent = found[0].toFixed(found[2]);
        if (found[1] !== null) cell.append(element("span", ` ±${found[1].toFixed(found[2])}`, { className: "half" }));
      } else { cell.textContent = found ?? ""; if (found === "better" || found === "worse") cell.className = found; }
      line.append(cell);
    }
    return line;
  }));
  at("count").textContent = `${shown.length} of ${all.length} rows.`;
}

function statistics() {
  const found = data.statistics;
  if (found.missing || !Object.keys(found.iqm).length) {
    at("statistics-note").textContent = found.missing || "No agent has runs of every task.";
    at("profile-chart").hidden = true;
    return;
  }
  at("statistics-note").textContent = `Scores are rewards, scaled at each task and point so that the worst agent has 0 and the best 1. Interquartile means with 95 % intervals of a stratified bootstrap; the probability that a run is better than one of ${found.reference}. Below: the share of runs above each score.`
    + (found.left_out.length ? ` Left out, because no seed has a run of each task: ${found.left_out.join(", ")}.` : "");
  const text = (three) => (three ? `${three[0].toFixed(3)}${three[1] === null ? " (one run)" : ` [${three[1].toFixed(3)}, ${three[2].toFixed(3)}]`}` : "");
  const rows = Object.entries(found.iqm).sort((a, b) => b[1][0] - a[1][0]).map(([agent, iqm]) => [agent, text(iqm), text(found.improvement[agent])]);
  at("statistics-table").replaceChildren(...[["agent", "interquartile mean", "P(improvement)"], ...rows].map((row, number) => {
    const line = element("tr");
    line.append(...row.map((one) => element(number ? "td" : "th", one)));
    return line;
  }));
  draw("profile-chart", Object.entries(found.profile).map(([agent, y]) => ({ x: found.levels, y, name: agent, mode: "lines", line: { color: colour(agent), width: 2, shape: "hv" } })), "score", "share of runs above it");
}

function learning() {
  const own = data.curves.filter((curve) => `${curve.task}, ${curve.split}` === state.task), column = Number(at("measure").value), traces = [];
  at("learning").hidden = !own.length;
  if (!own.length) return;
  const groups = Map.groupBy ? Map.groupBy(own, (curve) => `${curve.agent}, ${curve.point}`) : own.reduce((map, one) => map.set(`${one.agent}, ${one.point}`, [...(map.get(`${one.agent}, ${one.point}`) || []), one]), new Map());
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const points = [...new Set(own.map((curve) => curve.point))];
  for (const [name, curves] of groups) {
    const agent = curves[0].agent, length = Math.min(...curves.map((curve) => curve.rows.length));
    const x = curves[0].rows.slice(0, length).map((row) => row[0]), values = x.map((_, k) => curves.map((curve) => curve.rows[k][column]));
    if (curves.length > 1) traces.push({ ...band(x, values.map((one) => Math.min(...one)), values.map((one) => Math.max(...one)), agent), legendgroup: name });
    traces.push({ x, y: values.map(mean), name, legendgroup: name, mode: "lines+markers", marker: { size: 5 }, line: { color: colour(agent), width: 2, dash: dashes[points.indexOf(curves[0].point) % dashes.length] } });
  }
  draw("learning-chart", traces, "steps", at("measure").selectedOptions[0].textContent);
}

function galleries() {
  const own = data.galleries.filter((one) => `${one.task}, ${one.split}` === state.task);
  at("gallery").hidden = !own.length;
  at("place").replaceChildren(...own.map((one, number) => element("option", `${one.point}: ${one.agent}, seed ${one.seed}`, { value: number })));
  if (own.length) images(own[0]);
  at("place").onchange = () => images(own[Number(at("place").value)]);
}
function images(shown) {
  at("images").replaceChildren(...shown.images.map((one, number) => {
    const card = element("div", undefined, { className: "image", tabIndex: number ? -1 : 0 }), top = element("div", undefined, { className: "top" }), facts = element("dl");
    card.setAttribute("role", "listitem");
    card.setAttribute("aria-label", `${one.label ?? "image"}: dense ${one.dense}, masked ${one.masked}, ${(100 * one.macs).toFixed(1)} % of the MACs`);
    for (const [name, value, kind] of [["label", one.label ?? "unknown"], ["dense", one.dense, one.label && (one.dense === one.label ? "better" : "worse")], ["masked", one.masked, one.right ? "better" : "worse"], ["MACs", `${(100 * one.macs).toFixed(1)} %`]]) {
      facts.append(element("dt", name), element("dd", value, { className: kind || "" }));
    }
    top.append(element("img", undefined, { src: one.image, alt: "" }), facts);
    const gates = element("div", undefined, { className: "gates" });
    one.mask.forEach((bits, gate) => {
      const canvas = element("canvas", undefined, { width: bits.length, height: 1, title: `${shown.gates[gate][0]}: ${[...bits].filter((bit) => bit === "1").length} of ${bits.length} channels` });
      const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
      [...bits].forEach((bit, k) => { pen.fillStyle = style.getPropertyValue(bit === "1" ? "--accent" : "--line"); pen.fillRect(k, 0, 1, 1); });
      gates.append(canvas);
    });
    card.append(top, gates);
    return card;
  }));
}
at("images").onkeydown = (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], cards = [...at("images").children], now = cards.indexOf(document.activeElement);
  if (!step || now < 0) return;
  event.preventDefault();
  const next = cards[Math.max(0, Math.min(cards.length - 1, now + step))];
  cards[now].tabIndex = -1; next.tabIndex = 0; next.focus();
};

function all() { charts(); table(); statistics(); learning(); galleries(); }
function theme() { at("theme").textContent = dark() ? "Light" : "Dark"; all(); }
at("theme").onclick = () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; theme(); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
at("task").replaceChildren(...tasks.map((task) => element("option", task)));
at("task").onchange = () => { state.task = at("task").value; start(); all(); };
at("filter").oninput = () => { state.filter = at("filter").value; table(); };
at("measure").onchange = learning;
at("lambda").oninput = () => { state.lambda = Number(at("lambda").value); at("lambda-value").textContent = state.lambda.toFixed(2); charts(); table(); };
function start() {
  state.lambda = here()[0].penalty;
  at("lambda").max = Math.max(1, 2 * Math.max(...here().map((row) => row.penalty))).toFixed(2);
  at("lambda").value = state.lambda; state.lambda = Number(at("lambda").value);
  at("lambda-value").textContent = state.lambda.toFixed(2);
}
const runs = data.rows.reduce((sum, row) => sum + row.seeds.length, 0);
at("about").textContent = `${tasks.length} task${tasks.length > 1 ? "s" : ""}, ${agents.length} agents, ${runs} runs.`;
at("machine").textContent = `${data.machine.processor}, ${data.machine.threads} threads; ` + Object.entries(data.versions).filter(([, one]) => one).map(([name, one]) => `${name} ${one}`).join(", ") + ".";
start();
theme();
