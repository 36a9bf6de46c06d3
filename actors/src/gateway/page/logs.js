/* What the components logged, out of the encrypted store. */

import { field, make, setText } from "./dom.js";
import { get } from "./api.js";
import { count, time } from "./format.js";
import { poll } from "./poll.js";
import { problem, show } from "./problem.js";

const LEVELS = ["trace", "debug", "info", "warn", "error"];
const PAGE = 100;
const EVERY_MS = 2000;

function start(root, parameters) {
  let asking = null;
  const text = make("input", { type: "search", value: parameters.get("text") || "", placeholder: "words, \"a phrase\", begin*", spellcheck: false, data: { search: "" } });
  const level = make("select", {}, ...LEVELS.map((one) => new Option(one === "error" ? one : one + " and above", one, one === "info", one === (parameters.get("level") || "info"))));
  const component = make("input", { value: parameters.get("component") || "", placeholder: "all", spellcheck: false });
  const since = make("select", {}, ...[["", "ever"], ["5m", "5 minutes"], ["1h", "1 hour"], ["1d", "1 day"], ["7d", "7 days"]].map(([value, title]) => new Option(title, value)));
  const live = make("input", { type: "checkbox", checked: true, data: { pause: "" }, on: { change: follow } });
  const summary = make("p", { className: "dim", role: "status" });
  const list = make("ol", { className: "stream logs", tabIndex: 0, "aria-label": "Log records, the newest first" });
  const older = make("button", { type: "button", className: "quiet", on: { click: () => search(true).catch(problem) } }, "Older");
  const form = make("form", { className: "bar", on: { submit: (event) => { event.preventDefault(); search().catch(problem); } } },
    field("Search", text), field("Level", level), field("Component", component), field("Since", since), make("button", { type: "submit" }, "Search"), field("Live", live));
  for (const control of [level, since]) control.addEventListener("change", () => search().catch(problem));
  root.append(form, summary, list, older);

  let oldest = null;

  function query(before) {
    const parts = new URLSearchParams({ level: level.value, limit: String(PAGE) });
    if (text.value.trim()) parts.set("text", text.value.trim());
    if (component.value.trim()) parts.set("component", component.value.trim());
    if (since.value) parts.set("since", since.value);
    if (before) parts.set("before", before);
    return "/v1/logs?" + parts;
  }

  function line(record) {
    const summaryLine = make("summary", {}, make("time", {}, time(record.time_ns / 1e6)), " ", make("span", { className: "level " + record.level }, record.level), " ",
      make("strong", {}, record.component), " ", record.message);
    const fields = record.fields.map(([name, value]) => make("span", { className: "pair" }, make("b", {}, name), "=" + value));
    summaryLine.append(" ", ...fields.flatMap((one) => [one, " "]));
    const details = make("details", {}, summaryLine);
    details.addEventListener("toggle", () => {
      if (details.open && !details.querySelector("pre")) details.append(make("pre", {}, JSON.stringify(record, null, 2)));
    });
    return make("li", { className: record.level, data: { id: record.id } }, details);
  }

  async function search(more = false, signal = undefined) {
    const { logs, cut } = await get(query(more ? oldest : null), { signal });
    const found = logs.reverse();
    if (!more) {
      const first = list.firstChild && list.firstChild.dataset.id;
      if (signal && found.length && found[0].id === first) return;
      const open = new Set([...list.querySelectorAll("details[open]")].map((one) => one.parentElement.dataset.id));
      list.replaceChildren(...found.map(line));
      for (const item of list.children) if (open.has(item.dataset.id)) item.firstChild.open = true;
    } else {
      list.append(...found.map(line));
    }
    if (found.length) oldest = found.at(-1).time_ns;
    older.hidden = found.length < PAGE;
    setText(summary, list.children.length === 0 ? "no record matches" : count(list.children.length) + " records, the newest first" + (cut ? "; the search was given up before it had looked at all: narrow it" : ""));
    if (!signal) show("");
  }

  /* Live is asked again only while the reader is at the top and has not gone to older ones. */
  function follow() {
    if (asking) asking.stop();
    asking = live.checked ? poll(EVERY_MS, (signal) => (list.children.length > PAGE || list.scrollTop > 0 ? Promise.resolve() : search(false, signal))) : null;
  }

  search().catch(problem);
  follow();
  return () => asking && asking.stop();
}

export default { name: "logs", title: "Logs", start };
