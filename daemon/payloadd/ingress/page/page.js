// The status page: polls status.json, and shows what it says. All text from outside is set as text,
// never as HTML.
"use strict";

const SPAN = 900; // seconds that the plots show
const id = Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");
const byId = (name) => document.getElementById(name);
const COLORS = matchMedia("(prefers-color-scheme: dark)").matches
  ? ["#58a6ff", "#7ee2a0", "#ffa198"] : ["#0550ae", "#116329", "#a40e26"];

// The fields of a sample, in the order of the daemon.
const FIELDS = ["at", "accepted", "stored", "dead", "queueJobs", "queueBytes", "journalBytes", "oldest", "busy",
  "commits", "commitSeconds", "uploads", "uploadSeconds", "objectBytes"];
let samples = [];
let started = null;
let failedSince = null;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function count(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
  return value.toLocaleString("en", { maximumSignificantDigits: 2 });
}

function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (bytes >= 1024 && power < units.length - 1) { bytes /= 1024; power += 1; }
  return `${bytes.toLocaleString("en", { maximumSignificantDigits: 3 })} ${units[power]}`;
}

function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${(seconds * 1000).toLocaleString("en", { maximumSignificantDigits: 2 })} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} d`;
}

const part = (value, whole) => (whole > 0 ? `${Math.round((100 * value) / whole)} % of` : "of");

// Replace the content of an element if what it shows has changed: a selected text stays selected.
const shown = new Map();
function replace(parent, data, make) {
  const now = JSON.stringify(data);
  if (shown.get(parent) === now) return;
  shown.set(parent, now);
  parent.replaceChildren(...data.map(make));
}

function showVerdict(state) {
  let text = "All is well: every payload is accepted and stored";
  let kind = "good";
  if (state.phase !== "serving") { text = `The daemon is ${state.phase}`; kind = "warn"; }
  const kept = (state.dead_letters || []).reduce((sum, group) => sum + group.payloads, 0);
  const dead = state.dead_letters ? kept : state.payloads.dead;
  if (dead > 0) { text = `${count(dead)} payloads are dead letters`; kind = "warn"; }
  if (state.troubles.length) { text = `Trouble: ${state.troubles.map((t) => `${t.part} (${t.code})`).join(", ")}`; kind = "bad"; }
  if (state.refusal && state.phase === "serving") { text = `Requests are refused: ${state.refusal.code}`; kind = "bad"; }
  setVerdict(text, kind);
}

function setVerdict(text, kind) {
  const verdict = byId("verdict");
  if (verdict.textContent !== text) verdict.textContent = text; // a screen reader speaks each change
  verdict.className = kind;
  document.title = `${kind === "good" ? "" : "! "}payloadd: ${text}`;
}

function showTroubles(state) {
  const section = byId("troubles");
  section.hidden = !state.troubles.length && !state.refusal;
  const boxes = state.troubles.map((trouble) => ({
    title: `${trouble.part}: ${trouble.code}`,
    lines: [trouble.reason, `Since ${new Date(trouble.since).toLocaleString()}.`, `What to do: ${trouble.advice}`],
  }));
  if (state.refusal) boxes.push({ title: `Requests get 503 ${state.refusal.code}`, lines: [state.refusal.detail] });
  replace(section, boxes, ({ title, lines }) => {
    const box = element("div", undefined, "trouble");
    box.append(element("h2", title), ...lines.map((line) => element("p", line)));
    return box;
  });
}

function showFigures(state) {
  const { payloads, queue, journal, uploads, rates } = state;
  const rows = [
    ["accepted", `${count(rates.accepted_per_second)} /s`, `${count(payloads.accepted)} payloads since the start`],
    ["stored", `${count(rates.stored_per_second)} /s`, `${count(payloads.stored)} payloads since the start`],
    ["not stored yet", count(payloads.open), `oldest: ${time(payloads.oldest_seconds)}`],
    ["dead letters", count(payloads.dead), "payloads since the start"],
    ["queue", size(queue.bytes), `${part(queue.bytes, queue.max_bytes)} ${size(queue.max_bytes)}; ${count(queue.jobs)} jobs`],
    ["journal", ...(state.durability === "disk" ? [size(journal.bytes), `${part(journal.bytes, journal.max_bytes)} ${size(journal.max_bytes)}; ${count(journal.jobs)} jobs`] : ["none", `durability ${state.durability}`])],
    ["workers busy", count(uploads.busy_workers), `of ${count(uploads.concurrency)}`],
    ["objects", `${count(rates.objects_per_hour)} /h`, `mean size ${size(rates.mean_object_bytes)}`],
    ["a commit takes", time(rates.mean_commit_seconds), "mean of the last 10 s"],
    ["an upload takes", time(rates.mean_upload_seconds), "mean"],
  ];
  if (uploads.rate_limit !== null) rows.push(["upload limit", `${count(uploads.rate_limit)} /s`, "the store throttles"]);
  if (payloads.missing) rows.push(["missing", count(payloads.missing), "payloads lost by a damaged journal"]);
  if (state.credentials_expire_seconds !== undefined && state.credentials_expire_seconds !== null) {
    const left = state.credentials_expire_seconds;
    rows.push(["credentials", left > 0 ? time(left) : "expired", left > 0 ? "until they expire" : `${time(-left)} ago`]);
  }
  if (uploads.put_cost_dollars_per_day >= 0.01) {
    rows.push(["uploads cost", `$${count(uploads.put_cost_dollars_per_day)}`, "a day, at the present rate"]);
  }
  replace(byId("figures"), rows, ([name, value, more]) => {
    const box = element("div");
    box.append(element("dt", name), element("dd", value), element("dd", more, "more"));
    return box;
  });
  byId("where").textContent =
    `${state.host}, process ${state.process}, version ${state.version}, up ${time(state.now - state.started)}; ` +
    `store ${state.store}, durability ${state.durability}`;
}

function fillTable(table, rows) {
  replace(table.querySelector("tbody"), rows, (cells) => {
    const row = element("tr");
    row.append(...cells.map((cell) => element("td", cell)));
    return row;
  });
}

function showTables(state) {
  const dead = state.dead_letters || [];
  byId("dead").hidden = !dead.length;
  fillTable(byId("dead"), dead.map((d) => [d.stream, d.code, count(d.letters), count(d.payloads)]));
  fillTable(byId("settings"), state.settings.map((s) => [s.name, s.value, s.default]));
}

// Plots: a title, the labels of the lines, and the value of each line for a sample and one of about
// ten seconds before: a batch is stored at once, so rates of one second would jump.
const rate = (field) => (s, b) => Math.max(0, s[field] - b[field]) / (s.at - b.at);
const mean = (total, number) => (s, b) => (s[number] > b[number] ? (1000 * (s[total] - b[total])) / (s[number] - b[number]) : null);
const PLOTS = [
  { title: "Payloads a second, over 10 s", lines: { accepted: rate("accepted"), stored: rate("stored"), dead: rate("dead") } },
  { title: "Bytes in the queue", unit: size, lines: { queue: (s) => s.queueBytes } },
  { title: "Bytes in the journal", unit: size, lines: { journal: (s) => s.journalBytes } },
  { title: "Age of the oldest payload, s", lines: { age: (s) => s.oldest } },
  { title: "A commit takes, ms", lines: { commit: mean("commitSeconds", "commits") } },
  { title: "An upload takes, ms", lines: { upload: mean("uploadSeconds", "uploads") } },
];

function makePlots() {
  const style = getComputedStyle(document.documentElement);
  const binary = Array.from({ length: 50 }, (_, power) => 2 ** power);
  const clock = (_, ticks) => ticks.map((tick) => new Date(1000 * tick).toLocaleTimeString([], {
    hour: "2-digit", minute: "2-digit", second: ticks.length > 1 && ticks[1] - ticks[0] < 60 ? "2-digit" : undefined, hour12: false,
  }));
  const axis = { stroke: style.getPropertyValue("--weak"), grid: { stroke: style.getPropertyValue("--line"), width: 1 } };
  for (const plot of PLOTS) {
    const box = element("div", undefined, "plot");
    box.append(element("h2", plot.title));
    byId("plots").append(box);
    const unit = plot.unit || count;
    plot.chart = new uPlot({
      width: Math.max(200, box.clientWidth), height: 170,
      scales: { y: { range: (_, least, most) => [0, Math.max(most || 0, 1) * 1.1] } },
      series: [{}, ...Object.keys(plot.lines).map((label, index) => ({
        label, stroke: COLORS[index], width: 1.5, spanGaps: false, value: (_, v) => (v === null || v === undefined ? "–" : unit(v)),
      }))],
      axes: [{ ...axis, space: 75, values: clock }, {
        ...axis, size: 70, values: (_, ticks) => ticks.map((tick) => unit(tick)), ...(unit === size ? { incrs: binary } : {}),
      }],
    }, [[], ...Object.keys(plot.lines).map(() => [])], box);
  }
  addEventListener("resize", () => {
    for (const plot of PLOTS) plot.chart.setSize({ width: Math.max(200, plot.chart.root.parentElement.clientWidth), height: 170 });
  });
}

function drawPlots() {
  const times = samples.map((s) => s.at);
  for (const plot of PLOTS) {
    const lines = Object.values(plot.lines).map((value) => samples.map((sample, index) => {
      // Counters begin at 0 after a restart: there is no rate between the two processes.
      const fits = (before) => before && before.start === sample.start;
      let first = index - 1;
      if (!fits(samples[first])) return null;
      while (fits(samples[first - 1]) && samples[first - 1].at >= sample.at - 10.5) first -= 1;
      return value(sample, samples[first]);
    }));
    plot.chart.setData([times, ...lines]);
  }
}

function addSamples(state) {
  // The clock may have been set back before another process started.
  const first = state.history.length ? state.history[0][0] : Infinity;
  samples = samples.filter((sample) => sample.start === state.started || sample.at < first);
  for (const row of state.history) {
    const sample = Object.fromEntries(FIELDS.map((name, index) => [name, row[index]]));
    sample.start = state.started;
    samples.push(sample);
  }
  samples.sort((a, b) => a.at - b.at);
  const last = samples.length ? samples[samples.length - 1].at : 0;
  samples = samples.filter((sample) => sample.at > last - SPAN);
}

// Return the status and the code of an error answer, which may be one of a proxy.
async function answerText(answer) {
  const problem = await answer.json().catch(() => null);
  return `the daemon answers ${answer.status}${problem && problem.code ? ` ${problem.code}` : ""}`;
}

async function poll() {
  let next = 3;
  try {
    const known = samples.filter((sample) => sample.start === started);
    const since = known.length ? known[known.length - 1].at : 0;
    const answer = await fetch(`status.json?page=${id}&since=${since}`, { signal: AbortSignal.timeout(10000) })
      .catch((error) => { throw new Error(error.name === "TimeoutError" ? "no answer within 10 s" : "no connection to the daemon"); });
    if (!answer.ok) throw new Error(await answerText(answer));
    const state = await answer.json();
    failedSince = null;
    byId("content").classList.remove("stale");
    next = state.poll_seconds;
    if (started !== null && started !== state.started && since > 0) {
      started = state.started; // another process: its whole history is missing
      setTimeout(poll, 0);
      return;
    }
    started = state.started;
    addSamples(state);
    showVerdict(state);
    showTroubles(state);
    showFigures(state);
    showTables(state);
    drawPlots();
  } catch (error) {
    failedSince = failedSince || new Date();
    setVerdict(`No figures since ${failedSince.toLocaleTimeString()}: ${error.message}`, "bad");
    byId("content").classList.add("stale");
  }
  setTimeout(poll, 1000 * next);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => location.reload());
makePlots();
poll();
