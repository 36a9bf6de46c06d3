/* How numbers and times are written. */

const WHOLE = new Intl.NumberFormat("en");

export const count = (number) => (number === null || number === undefined ? "-" : WHOLE.format(number));

/* A rate a second, with as many digits as say something. */
export function rate(number) {
  if (!number) return "0";
  if (number < 10) return number.toFixed(number < 1 ? 2 : 1);
  return WHOLE.format(Math.round(number));
}

export function bytes(number) {
  if (number === null || number === undefined) return "-";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (number >= 1000 && power < units.length - 1) { number /= 1000; power += 1; }
  return (power === 0 || number >= 100 ? Math.round(number) : number.toFixed(1)) + " " + units[power];
}

/* Milliseconds as a length of time. */
export function span(ms) {
  if (ms === null || ms === undefined) return "-";
  if (ms < 1000) return Math.round(ms) + " ms";
  if (ms < 60000) return (ms / 1000).toFixed(ms < 10000 ? 1 : 0) + " s";
  if (ms < 3600000) return Math.floor(ms / 60000) + " m " + Math.floor((ms % 60000) / 1000) + " s";
  if (ms < 86400000) return Math.floor(ms / 3600000) + " h " + Math.floor((ms % 3600000) / 60000) + " m";
  return Math.floor(ms / 86400000) + " d " + Math.floor((ms % 86400000) / 3600000) + " h";
}

export const micros = (us) => (us === null || us === undefined ? "-" : us < 1000 ? us + " us" : span(us / 1000));

/* How long ago, of milliseconds since the epoch or an RFC 3339 time. */
export function ago(at) {
  if (!at) return "never";
  return span(Math.max(0, Date.now() - (typeof at === "number" ? at : Date.parse(at))));
}

/* Time of day with milliseconds, and the date if it is another one. */
export function time(ms) {
  const date = new Date(ms);
  const day = date.toDateString() === new Date().toDateString() ? "" : date.toISOString().slice(0, 10) + " ";
  return day + date.toLocaleTimeString("en-GB") + "." + String(date.getMilliseconds()).padStart(3, "0");
}
