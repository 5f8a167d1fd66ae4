// Asks the server for the run every second, and draws it. Everything from a run is put in as text, never as HTML.
"use strict";

const COLOURS = { train: "#3566b0", rollout: "#e8963a", moving: "#b9bec7", dead: "#b3261e" };
const QUEUE = "#6b5ca5", BUFFER = "#1f8a70";
const INTERVAL_MS = 1000;
const byId = (id) => document.getElementById(id);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const number = (value, digits = 0) =>
  value === null || value === undefined ? "-" : value.toLocaleString("en", { maximumFractionDigits: digits });
const share = (value) => (value === null || value === undefined ? "-" : `${Math.round(100 * value)} %`);
const change = (value) =>
  value === null || value === undefined ? "-" : `${value >= 0 ? "+" : "−"}${Math.abs(100 * value).toFixed(1)} %`;

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "-";
  const whole = Math.round(seconds), pad = (part) => String(part).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
}

function table(target, headings, rows) {
  const head = element("tr");
  for (const [name, isNumber] of headings) head.append(element("th", name, isNumber ? "number" : ""));
  const body = rows.map((cells) => {
    const row = element("tr");
    cells.forEach((cell, index) => {
      const made = cell instanceof Node ? element("td") : element("td", cell);
      if (cell instanceof Node) made.append(cell);
      if (headings[index][1]) made.className = "number";
      row.append(made);
    });
    return row;
  });
  target.replaceChildren(...(rows.length ? [head, ...body] : [element("tr", "none")]));
}

// With how the gang's worst worker is, where that may not be relied on.
function role(state, workerState) {
  const shown = element("span"), mark = element("span", "", "role");
  mark.style.background = COLOURS[state] || COLOURS.moving;
  shown.append(mark, state.replaceAll("_", " "));
  if (workerState) shown.append(element("span", `, ${workerState}`, "bad"));
  return shown;
}

function bar(value) {
  const shown = element("span"), frame = element("span", "", "bar"), filled = element("i");
  if (value === null || value === undefined) return element("span", "-");
  filled.style.width = `${Math.round(100 * value)}%`;
  frame.append(filled);
  shown.append(frame, share(value));
  return shown;
}

// What a move brought, with its uncertainty of two standard errors; in a colour where it is no chance.
function gain(move) {
  if (move.realised === null) return element("span", "-");
  const error = 2 * move.realised_error;
  const style = Math.abs(move.realised) < error ? "" : move.realised > 0 ? "good" : "bad";
  return element("span", `${change(move.realised)} ± ${(100 * error).toFixed(1)} %`, style);
}

function drawFacts(run) {
  const live = run.live, last = run.points.at(-1);
  const facts = [
    ["queue", number(live ? live.queue_length : run.state.queue_length)],
    ["in flight", live ? number(live.num_in_flight) : "-"],
    ["buffer", number(live ? live.num_buffered : last?.num_buffered)],
    ["generated, tokens/s", number(run.generated_tokens_per_s)],
    ["trained, tokens/s", number(run.trained_tokens_per_s)],
    ["trainer waits", share(run.wait_share)],
    ["reward", number(run.state.reward, 3)],
    ["held-out score", number(run.state.held_out_after ?? run.state.held_out_before, 3)],
  ];
  byId("facts").replaceChildren(...facts.map(([what, much]) => {
    const fact = element("div");
    fact.append(element("b", much), element("span", what));
    return fact;
  }));
}

function drawTables(run) {
  const gangs = run.live ? run.live.gangs : [];
  table(byId("gangs"),
    [["gang"], ["type"], ["role"], ["weights", 1], ["running", 1], ["waiting", 1], ["KV cache"], ["tokens/s", 1]],
    gangs.map((gang) => [gang.id, gang.type, role(gang.state, gang.worker_state), gang.version === null ? "-" : `v${gang.version}`,
      number(gang.num_running), number(gang.num_waiting), bar(gang.kv_cache_usage), number(gang.tokens_per_s)]));
  table(byId("moves"), [["at", 1], ["move"], ["took", 1], ["predicted", 1], ["realised", 1], ["why"]],
    run.moves.map((move) => [duration(move.time_s), move.text,
      move.duration_s === null ? "-" : `${move.duration_s.toFixed(1)} s`, change(move.predicted), gain(move),
      move.reason]));
  const decision = run.decision;
  byId("decision").textContent = decision === null ? "" :
    `last decision at ${duration(decision.time_s)}: ${decision.text} (${decision.reason})` +
    (decision.predicted === null ? "" : `, predicted ${change(decision.predicted)}`);
}

const LAYOUT = {
  margin: { l: 60, r: 10, t: 26, b: 36 }, height: 220, font: { color: "#2b2f36", size: 12 },
  legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom" }, barmode: "overlay",
};
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };

const line = (points, y, name, color, more) =>
  ({ x: points.map((point) => point.time_s), y: points.map((point) => point[y]), name, mode: "lines",
    line: { color, width: 2, ...more } });

function drawFigures(run) {
  const points = run.points;
  const seconds = { title: { text: `${run.is_paced ? "modelled " : ""}seconds since the start of the run` } };
  Plotly.react("rates", [
    line(points, "generated_tokens_per_s", "generated", COLOURS.rollout),
    line(points, "trained_tokens_per_s", "trained", COLOURS.train),
  ], { ...LAYOUT, yaxis: { rangemode: "tozero" } }, CONFIG);
  Plotly.react("queue", [
    line(points, "queue_length", "waiting for a replica", QUEUE, { shape: "hv" }),
    line(points, "num_buffered", "waiting for the trainer", BUFFER, { shape: "hv" }),
  ], { ...LAYOUT, yaxis: { rangemode: "tozero" } }, CONFIG);
  const bars = Object.entries(COLOURS).map(([owner, color]) => {
    const own = run.slots.flatMap((slot) =>
      slot.intervals.filter((part) => part.owner === owner).map((part) => [slot.label, part]));
    return { type: "bar", orientation: "h", name: owner, marker: { color }, y: own.map(([label]) => label),
      base: own.map(([, part]) => part.start_s), x: own.map(([, part]) => part.end_s - part.start_s),
      hovertemplate: `%{y}: ${owner} from %{base:.1f} s<extra></extra>` };
  }).filter((trace) => trace.y.length);
  Plotly.react("slots", bars, { ...LAYOUT, height: 90 + 22 * run.slots.length, xaxis: seconds,
    yaxis: { autorange: "reversed", categoryorder: "array", categoryarray: run.slots.map((slot) => slot.label),
      automargin: true } }, CONFIG);
}

function draw(run) {
  const state = run.state;
  document.title = `${state.name} · rlserve`;
  byId("name").textContent = state.name;
  byId("state").textContent = run.live && run.live.status !== "training" ? run.live.status : state.state;
  byId("step").textContent = `step ${state.step}/${state.num_steps ?? "?"}`;
  byId("server").textContent = state.server ? `clients: ${state.server}` : "";
  byId("server").href = /^https?:/.test(state.server) ? state.server : "";
  byId("left").textContent = state.time_left_s === null ? "" : `about ${duration(state.time_left_s)} left`;
  drawFacts(run);
  drawTables(run);
  drawFigures(run);
}

async function get(path) {
  const answer = await fetch(path), content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

let chosen = decodeURIComponent(location.hash.slice(1));

function listRuns(runs) {
  const select = byId("runs"), names = runs.map((run) => run.name);
  if (!names.includes(chosen)) chosen = names[0] ?? "";
  const shown = [...select.options].map((option) => option.value);
  if (names.join("\n") !== shown.join("\n")) {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  select.value = chosen;
}

async function look() {
  try {
    const { runs } = await get("/api/runs");
    listRuns(runs);
    if (!chosen) throw new Error("there are no runs yet");
    draw(await get(`/api/run/${encodeURIComponent(chosen)}`));
    byId("error").textContent = "";
  } catch (error) {
    byId("error").textContent = error instanceof TypeError ? "the dashboard has ended, or cannot be reached" : error.message;
  }
  setTimeout(look, INTERVAL_MS);
}

byId("runs").addEventListener("change", (event) => {
  chosen = event.target.value;
  location.hash = encodeURIComponent(chosen);
});
look();
