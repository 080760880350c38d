const PAD = { top: 10, right: 14, bottom: 24, left: 58 };
const HEIGHT = 220;
const MOST_POINTS = 600;
const TABLE_ROWS = 100;
const cursors = new Map(); // the place that is looked at, by chart

function thinned(points, most) {
  if (points.length <= most) return points;
  const step = Math.ceil(points.length / most);
  return points.filter((_, i) => i % step === 0 || i === points.length - 1);
}

// One figure. what: id, title, lines [{ name, slot, second, points [[x, y]] }], x and y (how to write them), share, target.
function chart(what, width) {
  const lines = what.lines.map((line) => ({ ...line, points: thinned(line.points.filter(([x, y]) => known(x) && known(y)), MOST_POINTS) }))
    .filter((line) => line.points.length);
  const figure = el("figure.chart", { "data-key": what.id, "aria-labelledby": `t-${what.id}` }, el("h3", { id: `t-${what.id}` }, what.title));
  if (!lines.length) {
    figure.append(el("p.muted.empty", {}, W.nothing));
    return figure;
  }
  const scale = scales(what, lines, Math.max(220, width));
  const ends = lines.map((line) => `${line.name}: ${W.ends} ${what.y(line.points[line.points.length - 1][1])}`).join("; ");
  const move = (x) => { cursors.set(what.id, x); point(figureOf(what.id), lines, scale, what); };
  const drawing = el("svg", {
    width: scale.width, height: HEIGHT, viewBox: `0 0 ${scale.width} ${HEIGHT}`, role: "img", tabindex: 0,
    "aria-label": `${what.title}. ${ends}. ${W.chartHelp}`,
    onpointermove: (event) => move(scale.back(event.offsetX)), onpointerdown: (event) => move(scale.back(event.offsetX)),
    onpointerleave: () => move(null), onblur: () => move(null), onkeydown: (event) => walk(event, lines, what.id, move),
  }, frame(what, scale), lines.map((line) => curve(line, scale)), el("g.cursor"));
  figure.append(
    el("div.plot", {}, drawing, el("div.tip", { hidden: true, role: "status" })),
    el("div.key", {}, lines.map((line) => el(`span.s${line.slot}`, {}, el(`i.swatch${line.second ? ".second" : ""}`), line.name))),
    details(what, lines),
  );
  requestAnimationFrame(() => { if (known(cursors.get(what.id))) move(cursors.get(what.id)); });
  return figure;
}

function scales(what, lines, width) {
  const xs = lines.flatMap((line) => line.points.map((p) => p[0]));
  const ys = lines.flatMap((line) => line.points.map((p) => p[1]));
  let [left, right] = [Math.min(...xs, what.from ?? Infinity), Math.max(...xs, what.to ?? -Infinity)];
  if (left === right) [left, right] = [left - 0.5, right + 0.5];
  let [low, high] = [Math.min(...ys, what.zero ? 0 : Infinity), Math.max(...ys)];
  if (what.share) { high = Math.min(1, high + 0.04); low = Math.max(0, low - 0.04); if (known(what.target) && what.target < high + 0.15) high = Math.max(high, Math.min(1, what.target + 0.02)); }
  if (low === high) { high += Math.abs(high) * 0.1 || 1; low -= what.zero ? 0 : Math.abs(low) * 0.1; }
  else if (!what.share) high += (high - low) * 0.05;
  const inner = { w: width - PAD.left - PAD.right, h: HEIGHT - PAD.top - PAD.bottom };
  return {
    width, left, right, low, high,
    x: (value) => PAD.left + ((value - left) / (right - left)) * inner.w,
    y: (value) => PAD.top + (1 - (value - low) / (high - low)) * inner.h,
    back: (pixel) => left + ((pixel - PAD.left) / inner.w) * (right - left),
  };
}

function frame(what, scale) {
  const bottom = HEIGHT - PAD.bottom;
  const parts = ticks(scale.low, scale.high, 6).filter((value) => !what.counts || Number.isInteger(value)).flatMap((value) => {
    const y = Math.round(scale.y(value)) + 0.5;
    return [el("line.grid", { x1: PAD.left, x2: scale.width - PAD.right, y1: y, y2: y }),
      el("text.axis", { x: PAD.left - 8, y: y + 4, "text-anchor": "end" }, (what.tick || what.y)(value))];
  });
  const marks = ticks(scale.left, scale.right, Math.max(2, Math.floor(scale.width / (what.wide ? 110 : 75))))
    .filter((value) => !what.integers || Number.isInteger(value));
  marks.forEach((value) => {
    const x = scale.x(value);
    const anchor = x > scale.width - 40 ? "end" : x < PAD.left + 20 ? "start" : "middle";
    parts.push(el("text.axis", { x: anchor === "end" ? scale.width - PAD.right : x, y: bottom + 17, "text-anchor": anchor }, what.x(value)));
  });
  if (known(what.target) && what.target <= scale.high && what.target >= scale.low) {
    parts.push(el("line.target", { x1: PAD.left, x2: scale.width - PAD.right, y1: scale.y(what.target), y2: scale.y(what.target) }));
  }
  return el("g", { "aria-hidden": "true" }, parts);
}

function curve(line, scale) {
  const d = line.points.map(([x, y], i) => `${i ? "L" : "M"}${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`).join("");
  const [x, y] = line.points[line.points.length - 1];
  return el(`g.s${line.slot}`, {}, el(`path.curve${line.second ? ".second" : ""}`, { d }),
    line.second ? null : el("circle.dot", { cx: scale.x(x).toFixed(1), cy: scale.y(y).toFixed(1), r: 4 }));
}

const figureOf = (id) => document.querySelector(`[data-key="${id}"]`);
const nearest = (points, x) => points.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));

// Shows the values at one place of a chart.
function point(figure, lines, scale, what) {
  const tip = figure && figure.querySelector(".tip");
  if (!tip) return;
  const at = cursors.get(what.id), mark = figure.querySelector(".cursor");
  tip.hidden = !known(at);
  if (!known(at)) { mark.replaceChildren(); return; }
  const middle = nearest(lines.flatMap((line) => line.points), at)[0], x = scale.x(middle);
  const found = lines.map((line) => [line, nearest(line.points, middle)]);
  mark.replaceChildren(el("line.here", { x1: x, x2: x, y1: PAD.top, y2: HEIGHT - PAD.bottom }),
    ...found.map(([line, [px, py]]) => el(`g.s${line.slot}`, {}, el("circle.dot", { cx: scale.x(px), cy: scale.y(py), r: 4 }))));
  tip.replaceChildren(el("span.muted", {}, what.place(middle)), ...found.map(([line, [, py]]) => el(`span.s${line.slot}`, {},
    el(`i.swatch${line.second ? ".second" : ""}`), ` ${what.y(py)}`, lines.length > 1 ? ` ${line.name}` : "")));
  const before = x > scale.width / 2;
  tip.style.left = before ? "" : `${x + 10}px`;
  tip.style.right = before ? `${scale.width - x + 10}px` : "";
  tip.style.maxWidth = `${(before ? x : scale.width - x) - 12}px`;
}

function walk(event, lines, id, move) {
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  const xs = [...new Set(lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  const at = cursors.get(id);
  const i = known(at) ? xs.indexOf(nearest(xs.map((x) => [x]), at)[0]) : step > 0 ? -1 : xs.length;
  move(xs[Math.max(0, Math.min(xs.length - 1, i + step))]);
}

const opened = new Set();
function details(what, lines) {
  const toggle = (event) => { const was = opened.has(what.id); if (event.currentTarget.open) opened.add(what.id); else opened.delete(what.id); if (was !== opened.has(what.id)) redraw(); };
  const all = [...new Set(lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => b - a).slice(0, TABLE_ROWS);
  const by = lines.map((line) => new Map(line.points));
  const rows = () => all.map((x) => [what.x(x), ...by.map((points) => (points.has(x) ? what.y(points.get(x)) : DASH))]);
  return el("details.more", { ontoggle: toggle }, el("summary", {}, W.asTable),
    opened.has(what.id) ? table(what.title, [[what.axis, ""], ...lines.map((line) => [line.name, "n", "asis"])], rows()) : null);
}
