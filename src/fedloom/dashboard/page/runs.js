// What the page knows. A run keeps its colour (its slot) for as long as it is shown.
const state = { names: [], runs: new Map(), chosen: [], picked: false, axis: "round", skew: 0, heard: false, filter: "" };
const SLOTS = 7;
const slots = new Map();

const runOf = (name) => state.runs.get(name) || null;
const nowHere = () => Date.now() / 1000 - state.skew;
const shownRuns = () => state.chosen.map(runOf).filter((run) => run && run.facts);

function slotOf(name) {
  if (!slots.has(name)) {
    const taken = new Set(state.chosen.filter((other) => slots.has(other)).map((other) => slots.get(other)));
    slots.set(name, [...Array(SLOTS).keys()].find((i) => !taken.has(i)) ?? slots.size % SLOTS);
  }
  return slots.get(name);
}

function choose(names) {
  for (const name of state.chosen) if (!names.includes(name)) slots.delete(name);
  state.chosen = names;
  names.forEach(slotOf);
}

// Runs that go on come first, then the latest.
function ordered() {
  const rank = (run) => ({ running: 0, waiting: 0 }[run.facts.state] ?? 1);
  return state.names.map(runOf).filter((run) => run && run.facts)
    .sort((a, b) => rank(a) - rank(b) || b.facts.changed - a.facts.changed || a.facts.name.localeCompare(b.facts.name));
}

function remember() {
  const words = new URLSearchParams();
  if (state.picked) state.chosen.forEach((name) => words.append("run", name));
  if (state.axis !== "round") words.set("x", state.axis);
  history.replaceState(null, "", `${location.pathname}${ASKED ? `?lang=${LANG}` : ""}${words.size ? `#${words}` : ""}`);
}

function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  if (words.has("run")) { state.picked = true; choose(words.getAll("run")); }
  if (["time", "bytes", "epsilon"].includes(words.get("x"))) state.axis = words.get("x");
}

function summary(facts) {
  const parts = [badge(facts)];
  if (facts.rounds) parts.push(`${facts.rounds}${facts.planned ? `/${facts.planned}` : ""}`);
  if (facts.tested) parts.push(percent(facts.tested.accuracy));
  return parts.join(" · ");
}

function badge(facts) {
  if (facts.state === "over" && facts.stopped) return W[facts.stopped] || W.over;
  return W[facts.state];
}

const titleOf = (facts) => {
  const source = facts.config.data && facts.config.data.source;
  return source && source !== "none" ? `${facts.algorithm} · ${source}` : facts.algorithm || facts.name;
};

function chooser() {
  const wanted = state.filter.toLowerCase();
  const fits = (run) => !wanted || `${run.facts.name} ${titleOf(run.facts)}`.toLowerCase().includes(wanted);
  return ordered().filter(fits).map(({ facts }) => {
    const on = state.chosen.includes(facts.name);
    const toggled = () => {
      state.picked = true;
      choose(on ? state.chosen.filter((name) => name !== facts.name) : [...state.chosen, facts.name]);
      remember(); connect(); redraw();
    };
    return el("li", { "data-key": facts.name }, el(`label${on ? `.s${slotOf(facts.name)}` : ""}`, {},
      el("input", { type: "checkbox", checked: on, onchange: toggled }), el("b", {}, facts.name), el("small", {}, summary(facts))));
  });
}

// Running sums over the rounds, for the axes.
function along(run) {
  let time = 0, bytes = 0, up = 0, down = 0;
  return run.rounds.map((one) => {
    time += one.seconds; up += one.bytes_up; down += one.bytes_down; bytes = up + down;
    return { ...one, time, bytes, up, down };
  });
}

const AXES = {
  round: { of: (one) => one.round, write: whole, integers: true, place: (x) => `${W.round} ${whole(x)}` },
  time: { of: (one) => one.time, write: duration, wide: true, place: duration },
  bytes: { of: (one) => one.bytes, write: size, wide: true, place: size },
  epsilon: { of: (one) => one.epsilon, write: number, place: (x) => `${W.epsilon} ${number(x)}` },
};

function figures() {
  const runs = shownRuns().map((run) => ({ ...run, sums: along(run), slot: slotOf(run.facts.name) }));
  if (!runs.some((run) => run.sums.length)) return [];
  const axis = AXES[state.axis], many = runs.length > 1;
  const name = (run, text) => (many ? (text ? `${run.facts.name}, ${text}` : run.facts.name) : text);
  const line = (run, text, of, more = {}) => ({ name: name(run, text), slot: run.slot, points: run.sums.map((one) => [axis.of(one), of(one)]), ...more });
  const lines = (...made) => runs.flatMap((run) => made.map((one) => one(run)));
  const common = { x: axis.write, axis: W[`x_${state.axis}`], place: axis.place, integers: axis.integers, wide: axis.wide };
  const only = runs.length === 1 ? runs[0] : null;
  const has = (key) => runs.some((run) => run.sums.some((one) => known(one[key]) && one[key] > 0));
  const other = (i) => ({ slot: only ? (only.slot + i) % SLOTS : undefined });
  const made = [{
    id: "accuracy", title: W.accuracy, y: percent, tick: (v) => ROUGH.format(v), share: true, target: only && only.facts.config.evaluation && only.facts.config.evaluation.target,
    lines: [...lines((run) => line(run, many ? "" : W.test, (one) => one.accuracy)), ...runs.flatMap(ownLine(axis, name))],
  }, {
    id: "loss", title: W.loss, y: loss, tick: number, zero: true,
    lines: lines((run) => line(run, many ? "" : W.test, (one) => one.loss), ...(many ? [] : [(run) => line(run, W.training, (one) => one.client_loss, { second: true })])),
  }];
  if (has("bytes")) made.push({
    id: "bytes", title: W.sent, y: size, zero: true,
    lines: lines((run) => line(run, many ? "" : W.both, (one) => one.bytes), ...(many ? [] : [(run) => line(run, W.up, (one) => one.up, { second: true, ...other(1) })])),
  });
  if (has("epsilon")) made.push({ id: "epsilon", title: W.epsilon, y: number, zero: true, lines: lines((run) => line(run, many ? "" : W.epsilon, (one) => one.epsilon)) });
  made.push({ id: "seconds", title: W.perRound, y: duration, zero: true, lines: lines((run) => line(run, many ? "" : W.perRound, (one) => one.seconds)) });
  if (has("asked") && runs.some((run) => run.sums.some((one) => one.clients !== one.asked || one.asked !== run.sums[0].asked))) made.push({
    id: "clients", title: W.perRoundClients, y: whole, zero: true, counts: true,
    lines: lines((run) => line(run, many ? "" : W.merged, (one) => one.clients), ...(many ? [] : [(run) => line(run, W.asked, (one) => one.asked, { second: true, ...other(1) })])),
  });
  const ends = runs.flatMap((run) => run.sums.map(axis.of)).filter(known);
  return made.map((one) => ({ ...common, from: ends.length ? Math.min(...ends) : undefined, to: ends.length ? Math.max(...ends) : undefined, ...one }));
}

const ownLine = (axis, name) => (run) => {
  const found = (run.facts.spreads || []).filter((one) => one.personal === run.facts.spreads.some((s) => s.personal));
  const by = new Map(run.sums.map((one) => [one.round, axis.of(one)]));
  return found.length ? [{ name: name(run, found[0].personal ? W.own : W.home), slot: run.slot, second: true, points: found.map((one) => [by.get(one.round), one.mean]) }] : [];
};
