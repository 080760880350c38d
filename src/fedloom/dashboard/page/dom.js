const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

// Makes an element: el("p.why", { title: "..." }, "text", child). Texts never become markup.
function el(kind, props = {}, ...inside) {
  const [tag, ...classes] = kind.split(".");
  const made = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  if (classes.length) made.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) { made[key] = value; (made.handlers ||= []).push(key); }
    else if (key === "checked" || key === "value" || key === "open") made[key] = value;
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  for (const one of inside.flat(9)) if (one !== null && one !== undefined && one !== false) made.append(one);
  return made;
}
const SVG_TAGS = new Set(["svg", "path", "line", "circle", "text", "g"]);

// Lets an element look like another one and touches only what differs, so that focus, selection and scrolling stay.
function morph(old, fresh) {
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && !KEPT.has(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const key of old.handlers || []) old[key] = null;
  for (const key of fresh.handlers || []) old[key] = fresh[key];
  old.handlers = fresh.handlers;
  if (old.tagName === "INPUT" && old.checked !== fresh.checked) old.checked = fresh.checked;
  if (old.tagName === "PROGRESS") old.value = fresh.value;
  fill(old, [...fresh.childNodes]);
}
const KEPT = new Set(["open", "style"]);

function fill(parent, children) {
  const there = [...parent.childNodes];
  children.forEach((fresh, i) => {
    const old = there[i];
    if (!old) parent.append(fresh);
    else if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || key(old) !== key(fresh)) old.replaceWith(fresh);
    else if (old.nodeType === Node.TEXT_NODE) { if (old.data !== fresh.data) old.data = fresh.data; }
    else morph(old, fresh);
  });
  for (const old of there.slice(children.length)) old.remove();
}
const key = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null);

// A table: columns are [title, kind, class]; a row begins with its name, and cells are texts or elements.
function table(caption, columns, rows, kind = "table") {
  const cell = (value, i) => {
    const [title, how] = columns[i];
    if (i === 0) return el("th", { scope: "row" }, value);
    const blank = value === DASH || value === "" || value === null;
    return el(`td${how === "n" ? ".n" : how === "wide" ? ".wide" : ""}${blank ? ".blank" : ""}`, { "data-l": title }, value);
  };
  return el("div.scroll", { tabindex: 0, role: "region", "aria-label": caption },
    el(kind, {},
      el("thead", {}, el("tr", {}, columns.map(([title, how, name]) => el(["th", how === "n" && "n", name].filter(Boolean).join("."), { scope: "col" }, title)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell))))));
}
