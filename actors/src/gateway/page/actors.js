/* The tree of actors: state, restarts and reasons, and orders to one of them. */

import { ask, make, setText } from "./dom.js";
import { get, send } from "./api.js";
import { ago, bytes, count, micros } from "./format.js";
import { badge } from "./badge.js";
import { poll } from "./poll.js";
import { problem, show } from "./problem.js";
import { table } from "./table.js";

const EVERY_MS = 1000;
/* Without these nothing reaches the runtime for a moment. */
const NEEDED = ["broker", "runtime", "gateway"];

const reason = (child) => (child.state !== "running" && child.waits_for.length ? "waits for " + child.waits_for.join(", ") + ". " : "")
  + (child.impaired ? child.impaired + ". " : "")
  + (child.budget.spent ? "Given up: its restart budget is spent. " : "")
  + (child.last_failure ? "Last failure " + ago(child.last_failure.at) + " ago: " + child.last_failure.reason : "");

function start(root) {
  const summary = make("p", { className: "dim", role: "status" });
  const list = table({
    caption: "Actors",
    key: (child) => child.name,
    columns: [
      { title: "#", number: true, value: (child) => child.index },
      { title: "Name", value: (child) => child.name, fill: (cell, child) => { setText(cell, child.name); cell.classList.toggle("below", Boolean(child.supervisor)); } },
      { title: "State", value: (child) => child.state, fill: (cell, child) => badge(cell, child.state) },
      { title: "For", number: true, value: (child) => -Date.parse(child.since), show: (child) => ago(child.since) },
      { title: "Restarts", number: true, value: (child) => child.restarts, show: (child) => count(child.restarts) },
      { title: "Mailbox", number: true, value: (child) => child.queued, show: (child) => count(child.queued) },
      { title: "Handled", number: true, value: (child) => child.load.handled, show: (child) => count(child.load.handled) },
      { title: "p50 / p99", number: true, value: (child) => child.load.handler_p99_us, show: (child) => (child.load.handler_p99_us === null ? "-" : micros(child.load.handler_p50_us) + " / " + micros(child.load.handler_p99_us)) },
      { title: "Memory", number: true, value: (child) => child.load.memory_bytes, show: (child) => bytes(child.load.memory_bytes) },
      { title: "Reason", wide: true, value: reason },
      { title: "Orders", value: (child) => child.name, fill: orders },
    ],
  });
  root.append(summary, list.element);

  function orders(cell, child) {
    if (!cell.firstChild) {
      const button = (order, text) => make("button", { type: "button", className: "small", on: { click: () => give(order, child.name).catch(problem) }, "aria-label": text + " " + child.name, data: { order } }, text);
      cell.append(make("span", { className: "row" }, button("restart", "Restart"), button("stop", "Stop"), button("start", "Start")));
    }
    const isDown = child.state === "stopped" || child.state === "error";
    cell.querySelector("[data-order=stop]").hidden = isDown || NEEDED.includes(child.name);
    cell.querySelector("[data-order=start]").hidden = !isDown;
  }

  async function give(order, name) {
    const warning = NEEDED.includes(name) ? " This page hears nothing until it is back." : "";
    if (order !== "start" && !await ask(order === "stop" ? "Stop " + name + "?" : "Restart " + name + "?",
      (order === "stop" ? "It stays down until it is started." : "What it has in hand is finished first; what waits stays.") + warning, order === "stop" ? "Stop" : "Restart")) return;
    show("");
    await send("POST", "/v1/admin/components/" + encodeURIComponent(name) + "/" + order);
    asking.now();
  }

  const asking = poll(EVERY_MS, async (signal) => {
    const status = await get("/v1/admin/components", { signal });
    const children = status.components.map((child, index) => ({ ...child, index: index + 1 }));
    const down = children.filter((child) => child.state !== "running").length;
    const restarts = children.reduce((sum, child) => sum + child.restarts, 0);
    setText(summary, children.length + " actors, " + (down ? down + " not running" : "all running") + ", " + count(restarts) + " restarts");
    summary.classList.toggle("alarm", down > 0);
    list.update(children);
  });
  return asking.stop;
}

export default { name: "actors", title: "Actors", start };
