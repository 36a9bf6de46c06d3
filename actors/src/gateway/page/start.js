/* How it came up, and what is not ready: components in start order, the log path, gates. */

import { make, setText } from "./dom.js";
import { get } from "./api.js";
import { ago, count, micros } from "./format.js";
import { poll } from "./poll.js";
import { badge } from "./badge.js";
import { table } from "./table.js";

const EVERY_MS = 2000;

function bar(cell, child, whole) {
  const { began_us: began, ready_us: ready } = child.first_start || {};
  if (began === undefined || began === null) return setText(cell, "not started yet");
  if (!cell.firstChild || cell.firstChild.nodeName !== "METER-LINE") {
    cell.replaceChildren(make("meter-line", { role: "img" }, make("span", {}), make("b", {})));
  }
  const [before, line] = cell.firstChild.children;
  const until = ready ?? whole;
  before.style.width = (100 * began) / whole + "%";
  line.style.width = Math.max(0.7, (100 * (until - began)) / whole) + "%";
  line.className = ready === null ? "waiting" : "";
  cell.firstChild.setAttribute("aria-label", ready === null ? "began after " + micros(began) + ", not ready" : "from " + micros(began) + " to " + micros(ready));
}

const needs = (gate) => (gate.needs || []).map((need) => need.peer + " " + need.state).join(", ");

function start(root) {
  let whole = 1;
  const headline = make("p", { className: "headline", role: "status" }, "...");
  const facts = make("dl", { className: "facts" });
  const tree = table({
    caption: "Components in the order of their start",
    key: (child) => child.name,
    sort: 0,
    columns: [
      { title: "#", number: true, value: (child) => child.index },
      { title: "Component", value: (child) => child.name },
      { title: "State", value: (child) => child.state, fill: (cell, child) => badge(cell, child.state) },
      { title: "Start", wide: true, value: (child) => child.first_start && child.first_start.ready_us, fill: (cell, child) => bar(cell, child, whole) },
      { title: "Ready after", number: true, value: (child) => child.first_start && child.first_start.ready_us, show: (child) => micros(child.first_start && child.first_start.ready_us) },
      { title: "Proof, or what it waits for", wide: true, value: (child) => child.waits },
    ],
  });
  const gates = table({
    caption: "Publishers that wait for their consumers",
    key: (gate) => gate.key,
    empty: "No gate is closed.",
    columns: [
      { title: "Publisher", value: (gate) => gate.peer },
      { title: "Topics", value: (gate) => gate.topic },
      { title: "State", value: (gate) => gate.state, fill: (cell, gate) => badge(cell, gate.state) },
      { title: "Buffered", number: true, value: (gate) => gate.buffered, show: (gate) => count(gate.buffered) },
      { title: "Flushed", number: true, value: (gate) => gate.flushed, show: (gate) => count(gate.flushed) },
      { title: "Dropped", number: true, value: (gate) => gate.dropped, show: (gate) => count(gate.dropped) },
      { title: "Needs", wide: true, value: needs },
    ],
  });
  root.append(headline, facts, tree.element, gates.element);

  async function look(signal) {
    const status = await get("/v1/status", { signal });
    const children = status.tree.children.map((child, index) => ({
      ...child,
      index: index + 1,
      waits: child.waits_for.length ? "waits for " + child.waits_for.join(", ") + (child.unmet.length ? ": " + child.unmet.map((need) => need.words).join(", ") : "")
        : child.impaired || (child.state !== "running" && child.last_failure ? child.last_failure.reason : child.readiness),
    }));
    whole = Math.max(1, ...children.map((child) => (child.first_start && (child.first_start.ready_us || child.first_start.began_us)) || 0));
    const down = children.filter((child) => child.state !== "running");
    setText(headline, down.length === 0 ? "All " + children.length + " components are ready; the last one was after " + micros(whole) + "."
      : down.length + " of " + children.length + " components " + (down.length === 1 ? "is" : "are") + " not ready: " + down.map((child) => child.name).join(", ") + ".");
    headline.className = "headline " + (down.length === 0 ? "good" : "bad");
    tree.update(children);
    const log = children.find((child) => child.name === "log-transport");
    const rows = [["Log path", (log && log.status) || "not up"], ["Model", status.model], ["Running since", ago(status.instance.started_at) + ", version " + status.instance.version],
      ["Instance", status.instance.instance + ", process " + status.instance.pid], ["Bus", status.instance.endpoints.join(", ")]];
    if (status.shutdown) rows.unshift(["Stopping", JSON.stringify(status.shutdown)]);
    facts.replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    const answer = await get("/v1/bus/gates", { signal });
    gates.update(answer.gates.map((gate) => ({ ...gate, key: gate.peer + " " + gate.topic })));
  }
  return poll(EVERY_MS, look).stop;
}

export default { name: "start", title: "Start", start };
