let source = null, due = false, timer = 0;

function redraw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; draw(); });
}

function draw() {
  const runs = shownRuns();
  $("count").textContent = state.names.length ? whole(state.names.length) : "";
  $("filter").hidden = state.names.length < 8;
  fill($("runs"), chooser());
  document.title = runs.length === 1 && runs[0].facts.tested ? `${percent(runs[0].facts.tested.accuracy)} · ${runs[0].facts.name}` : "fedloom";
  fill($("head"), head(runs));
  const made = figures();
  $("curves").hidden = !made.length;
  if (made.length) {
    fill($("axes"), axes(runs));
    const space = $("charts").clientWidth, gap = 16, least = 400;
    const columns = Math.max(1, Math.floor((space + gap) / (least + gap)));
    const width = Math.floor((space - gap * (columns - 1)) / columns) - (matchMedia("(max-width:52rem)").matches ? 28 : 34);
    fill($("charts"), made.map((one) => chart(one, width)));
  }
  fill($("tables"), lower(runs).filter(Boolean));
}

function head(runs) {
  if (!state.heard) return [];
  if (!state.names.length) return [el("p.empty", {}, W.none)];
  if (!runs.length) return [el("p.empty", {}, W.choose)];
  if (runs.length > 1) return [comparison(runs)];
  return [header(runs[0]), ...banners(runs[0]), tiles(runs[0])];
}

function lower(runs) {
  if (runs.length > 1) return [differences(runs), ...runs.filter((run) => run.presence.clients && run.facts.state === "running").map(clientsPanel)];
  return runs.flatMap((run) => [clientsPanel(run), roundsPanel(run), settingsPanel(run)]);
}

function axes(runs) {
  const has = { round: true, time: true, bytes: runs.some((run) => run.facts.sums.bytes_up > 0), epsilon: runs.some((run) => run.facts.last && known(run.facts.last.epsilon)) };
  if (!has[state.axis]) state.axis = "round";
  return Object.keys(AXES).filter((name) => has[name]).map((name) => el("label", { "data-key": name },
    el("input", { type: "radio", name: "axis", checked: state.axis === name, onchange: () => { state.axis = name; cursors.clear(); remember(); redraw(); } }), W[`x_${name}`]));
}

function line(kind) {
  const text = kind === "on" && !state.chosen.map(runOf).some((run) => run && run.facts && ["running", "waiting"].includes(run.facts.state)) ? W.still : W[kind];
  $("line").className = `line ${kind}`;
  if ($("line").textContent !== text) $("line").textContent = text;
}

const HEARD = {
  runs: ({ names, now }) => {
    state.names = names; state.heard = true; state.skew = Date.now() / 1000 - now;
    for (const name of state.runs.keys()) if (!names.includes(name)) state.runs.delete(name);
  },
  run: ({ name, facts }) => {
    const run = state.runs.get(name) || { rounds: [], presence: {} };
    const before = run.facts || {};
    run.facts = state.chosen.includes(name) ? facts : { failed: before.failed, spreads: before.spreads, ...facts };
    state.runs.set(name, run);
  },
  rounds: ({ name, from, rounds }) => {
    const run = state.runs.get(name);
    if (run) run.rounds = [...run.rounds.slice(0, from), ...rounds];
  },
  presence: ({ name, presence }) => { const run = state.runs.get(name); if (run) run.presence = presence; },
};

// Until somebody chooses, the page shows the run that goes on, or the latest.
function follow() {
  if (state.picked || !state.heard) return;
  const first = ordered()[0];
  if (first && state.chosen[0] !== first.facts.name) { choose([first.facts.name]); connect(); }
}

function connect() {
  clearTimeout(timer);
  if (source) source.close();
  const words = new URLSearchParams();
  state.chosen.forEach((name) => words.append("run", name));
  const mine = source = new EventSource(`events?${words}`);
  mine.onopen = () => line("on");
  mine.onerror = () => {
    line("off");
    if (mine.readyState === EventSource.CLOSED && mine === source) timer = setTimeout(connect, 3000);
  };
  for (const kind of Object.keys(HEARD)) mine.addEventListener(kind, (event) => {
    if (mine !== source) return;
    HEARD[kind](JSON.parse(event.data));
    settle();
  });
}

let settling = 0;
function settle() {
  clearTimeout(settling);
  settling = setTimeout(() => { follow(); line("on"); redraw(); }, 20);
}

document.documentElement.lang = LANG;
for (const node of document.querySelectorAll("[data-t]")) node.textContent = W[node.dataset.t];
$("filter").placeholder = W.filter;
$("filter").setAttribute("aria-label", W.filter);
$("filter").oninput = (event) => { state.filter = event.target.value; redraw(); };
$("axes").setAttribute("aria-label", W.against);
if (matchMedia("(max-width:52rem)").matches) $("chooser").open = false;
recall();
remember(); // takes the token out of the address
line("connecting");
connect();
new ResizeObserver(redraw).observe($("main"));
setInterval(() => { if (shownRuns().some((run) => run.presence.clients)) redraw(); }, 1000);
