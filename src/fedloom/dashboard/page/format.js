const NUMBERS = new Intl.NumberFormat(LANG, { maximumSignificantDigits: 3 });
const WHOLE = new Intl.NumberFormat(LANG, { maximumFractionDigits: 0 });
const PERCENT = new Intl.NumberFormat(LANG, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const ROUGH = new Intl.NumberFormat(LANG, { style: "percent", maximumFractionDigits: 1 });
const LOSS = new Intl.NumberFormat(LANG, { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const DASH = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);

const percent = (value) => (known(value) ? PERCENT.format(value) : DASH);
const whole = (value) => (known(value) ? WHOLE.format(value) : DASH);
const number = (value) => (known(value) ? NUMBERS.format(value) : DASH);
const loss = (value) => (!known(value) ? DASH : Math.abs(value) < 0.01 || Math.abs(value) >= 100 ? NUMBERS.format(value) : LOSS.format(value));

function size(bytes) {
  if (!known(bytes)) return DASH;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  const step = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(bytes) / 3 + 1e-9));
  return `${NUMBERS.format(bytes / 1000 ** step)} ${units[step]}`;
}

function duration(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds <= 0) return "0 s";
  if (seconds < 0.9995) return `${NUMBERS.format(seconds * 1000)} ms`;
  if (seconds < 59.95) return `${NUMBERS.format(seconds)} s`;
  const all = Math.round(seconds);
  if (all < 3600) return all % 60 ? `${Math.floor(all / 60)} min ${all % 60} s` : `${all / 60} min`;
  if (all < 172800) return `${Math.floor(all / 3600)} h ${Math.floor((all % 3600) / 60)} min`;
  return `${Math.floor(all / 86400)} d ${Math.floor((all % 86400) / 3600)} h`;
}

function since(seconds) {
  if (!known(seconds)) return W.never;
  if (seconds < 3) return W.now;
  return W.ago(seconds < 60 ? `${Math.floor(seconds)} s` : duration(Math.floor(seconds / 60) * 60));
}

function listed(texts, most = 4) {
  const shown = texts.length > most + 1 ? [...texts.slice(0, most), W.others(texts.length - most)] : texts;
  return shown.length > 1 ? `${shown.slice(0, -1).join(", ")} ${W.and} ${shown[shown.length - 1]}` : shown.join("");
}

// Round values for an axis, about so many of them.
function ticks(low, high, about) {
  const rough = (high - low || 1) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough) || rough;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(i * step || 0);
  return found;
}
