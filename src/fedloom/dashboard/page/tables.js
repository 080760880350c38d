const ROUNDS_SHOWN = 25;
const AWAY = 30;
const FRESH = 10;

function tile(title, big, ...small) {
  return el("div.tile", {}, el("dt", {}, title), el("dd.big", {}, big), small.filter(Boolean).map((one) => el("dd.small", {}, one)));
}

function header(run) {
  const { facts } = run, c = facts.config, start = facts.start;
  const said = [facts.name, c.model && c.model.name, start.clients && `${whole(start.clients)} ${W.clients.toLowerCase()}`,
    start.samples && `${whole(start.samples)} ${W.samples.toLowerCase()}`, c.data && c.data.scheme, c.run && `seed ${c.run.seed}`];
  return el("div", {}, el("div.title", {}, el("h1", {}, titleOf(facts)), el(`span.badge.${facts.state}`, {}, badge(facts)),
    facts.report ? el("a", { href: `report?run=${encodeURIComponent(facts.name)}` }, W.report) : null),
  el("p.facts", {}, said.filter(Boolean).join(" · ")));
}

function tiles(run) {
  const { facts, rounds, presence } = run, last = facts.last, sums = facts.sums, made = [];
  if (facts.tested) made.push(tile(W.accuracy, percent(facts.tested.accuracy), `${W.best}: ${percent(facts.best.accuracy)} ${W.inRound(facts.best.round)}`));
  const left = facts.state === "running" && last && facts.planned > last.round ? recent(rounds) * (facts.planned - last.round) : null;
  made.push(tile(W.round, facts.planned ? W.roundOf(whole(last ? last.round : 0), whole(facts.planned)) : whole(facts.rounds),
    facts.planned ? el("progress", { max: facts.planned, value: last ? last.round : 0, "aria-label": W.round }) : null,
    left === null ? (last ? W.within(duration(sums.seconds)) : null) : `${duration(left)} ${W.left}`));
  if (facts.tested && known(facts.tested.loss)) made.push(tile(W.loss, loss(facts.tested.loss), known(last.client_loss) ? `${W.training}: ${loss(last.client_loss)}` : null));
  if (last) made.push(tile(W.perRound, duration(left === null ? sums.seconds / facts.rounds : recent(rounds) || last.seconds), left === null ? W.average : `${W.allRounds}: ${duration(sums.seconds)}`));
  made.push(...clientTile(facts, presence));
  if (sums.bytes_up + sums.bytes_down > 0) made.push(tile(W.sent, size(sums.bytes_up + sums.bytes_down), `${size(sums.bytes_down)} ${W.down}, ${size(sums.bytes_up)} ${W.up}`));
  if (last && known(last.epsilon)) made.push(tile(W.epsilon, number(last.epsilon), `${W.delta} ${number(facts.privacy.delta)}`, facts.privacy.void ? el("span.bad", {}, W.void) : null));
  return el(`dl.tiles${[3, 5, 6].includes(made.length) ? ".three" : ""}`, {}, made);
}

function clientTile(facts, presence) {
  const last = facts.last, failed = last && last.failed ? el("span.bad", {}, `${W.failures}: ${whole(last.failed)}`) : null;
  if (presence && presence.clients) {
    const all = presence.count || presence.clients.length, on = presence.clients.filter((one) => ["on", "busy"].includes(doing(one, presence)[0])).length;
    if (["running", "waiting"].includes(facts.state)) return [tile(W.clients, W.ofAll(on, all), W.connected, failed)];
  }
  return last ? [tile(W.clients, last.asked ? W.ofAll(whole(last.clients), whole(last.asked)) : whole(last.clients), W.merged, failed)] : [];
}

const recent = (rounds) => { const few = rounds.slice(-10); return few.length ? few.reduce((sum, one) => sum + one.seconds, 0) / few.length : 0; };

function banners(run) {
  const { facts, presence } = run, made = [];
  if (facts.state === "waiting" && presence.clients) {
    const there = presence.clients.filter((one) => one.agreed && !one.left).length;
    if (presence.count > there) made.push(el("p.banner", { role: "status" }, W.waitingFor(presence.count - there, presence.count)));
  }
  if (facts.state === "running" && presence && presence.waiting && presence.waiting.length) {
    const names = presence.clients.filter((one) => presence.waiting.includes(one.number)).map((one) => one.name);
    made.push(el("p.muted", {}, W.roundWaits(presence.round, listed(names))));
  }
  if (facts.damaged) made.push(el("p.banner.problem", {}, W.damaged(facts.damaged)));
  return made;
}

// What a client is at: a class, and words.
function doing(one, presence) {
  if (one.left) return ["gone", W.gone];
  if (!presence.time || nowHere() - presence.time > FRESH) return ["", W.unknown];
  if (!known(one.seen) || nowHere() - one.seen > Math.min(AWAY, presence.away ?? AWAY)) return ["gone", W.away];
  if (!one.agreed) return ["on", W.deciding];
  return (presence.waiting || []).includes(one.number) ? ["busy", W.training_now] : ["on", W.idle];
}

function clientsPanel(run) {
  const { facts, presence } = run;
  if (!presence || !presence.clients || !presence.clients.length) return failuresOnly(facts);
  const epochs = (facts.config.training && facts.config.training.epochs) || 1, failed = facts.failed || {};
  const rows = presence.clients.map((one) => {
    const [kind, words] = facts.over && !one.left ? ["", DASH] : doing(one, presence), bad = failed[`client_${one.number}`];
    const speed = known(one.took) && one.took > 0 ? `${number((one.samples * epochs) / one.took)} ${W.perSecond}` : DASH;
    return [el("span", {}, one.name, " ", el("span.why", {}, `#${one.number}`)), words === DASH ? DASH : el(`span.state${kind ? `.${kind}` : ""}`, {}, words),
      since(known(one.seen) ? nowHere() - one.seen : NaN), whole(one.samples), speed, bad ? el("span.bad", {}, whole(bad.count)) : "0",
      one.left ? el("span.why", {}, one.left) : bad ? el("span.why", {}, `${W.round} ${bad.round}: ${bad.reason}`) : ""];
  });
  const columns = [[W.name], [W.state], [W.seen, "n"], [W.samples, "n"], [W.speed, "n"], [W.failures, "n"], [W.why, "wide"]];
  return panel(W.clients, table(W.clients, columns, rows, "table.cards"), "clients-panel");
}

function failuresOnly(facts) {
  const rows = Object.entries(facts.failed || {}).sort((a, b) => b[1].count - a[1].count).slice(0, 50)
    .map(([name, one]) => [name, whole(one.count), W.kinds[one.kind] || one.kind, `${W.round} ${one.round}: ${one.reason}`]);
  return rows.length ? panel(W.failures, table(W.failures, [[W.client], [W.failures, "n"], [W.state], [W.why, "wide"]], rows, "table.cards"), "failed-panel") : null;
}

const panel = (title, inside, id, note = "") => el("section.panel", { "data-key": id },
  el("div.bar", {}, el("h2", { id }, title), note ? el("span.muted", {}, note) : null), inside);

function roundsPanel(run) {
  const shown = run.rounds.slice(-ROUNDS_SHOWN).reverse(), private_ = shown.some((one) => known(one.epsilon));
  if (!shown.length) return null;
  const columns = [[W.round], [W.accuracy, "n"], [W.loss, "n"], [W.clients, "n"], [W.failed, "n"], [W.down, "n"], [W.up, "n"], [W.time, "n"], ...(private_ ? [[W.epsilon, "n"]] : [])];
  const rows = shown.map((one) => [whole(one.round), percent(one.accuracy), loss(one.loss), whole(one.clients),
    one.failed ? el("span.bad", {}, whole(one.failed)) : "0", size(one.bytes_down), size(one.bytes_up), duration(one.seconds), ...(private_ ? [number(one.epsilon)] : [])]);
  return panel(W.lastRounds, table(W.lastRounds, columns, rows), "rounds-panel", run.rounds.length > ROUNDS_SHOWN ? W.shownLast(ROUNDS_SHOWN) : "");
}

const flat = (config) => Object.fromEntries(Object.entries(config).flatMap(([name, rows]) => Object.entries(rows).map(([k, v]) => [`${name}.${k}`, String(v)])));

function settingsPanel(run) {
  const rows = Object.entries(flat(run.facts.config)).filter(([, value]) => value !== "");
  return rows.length ? el("details.panel", { "data-key": "settings" }, el("summary", {}, el("strong", {}, W.settings)), table(W.settings, [[W.key], [""]], rows)) : null;
}

function comparison(runs) {
  const columns = [[W.run], [W.accuracy, "n"], [W.best, "n"], [W.loss, "n"], [W.rounds, "n"], [W.sent, "n"], [W.time, "n"], [W.epsilon, "n"], [W.failures, "n"]];
  const rows = runs.map(({ facts }) => [
    el(`span.s${slotOf(facts.name)}`, {}, el("i.swatch"), " ", facts.name, " ", el(`span.badge.${facts.state}`, {}, badge(facts))),
    percent(facts.tested && facts.tested.accuracy), percent(facts.best && facts.best.accuracy), loss(facts.tested && facts.tested.loss), whole(facts.rounds),
    size(facts.sums.bytes_up + facts.sums.bytes_down), duration(facts.sums.seconds), number(facts.last && facts.last.epsilon), whole(facts.sums.failed)]);
  return panel(W.compared, table(W.compared, columns, rows, "table.cards"), "compared");
}

function differences(runs) {
  const tables = runs.map((run) => flat(run.facts.config));
  const keys = [...new Set(tables.flatMap(Object.keys))].filter((k) => new Set(tables.map((one) => one[k] ?? "")).size > 1);
  const rows = keys.map((k) => [k, ...tables.map((one) => one[k] || DASH)]);
  return rows.length ? panel(W.different, table(W.different, [[W.key], ...runs.map((run) => [run.facts.name, "", "asis"])], rows), "different") : null;
}
