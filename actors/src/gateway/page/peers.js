/* Who is connected, who was refused, what was denied, and why. */

import { field, make } from "./dom.js";
import { get } from "./api.js";
import { ago, bytes, count } from "./format.js";
import { badge } from "./badge.js";
import { poll } from "./poll.js";
import { problem, show } from "./problem.js";
import { table } from "./table.js";

const EVERY_MS = 2000;

function start(root) {
  const sessions = table({
    caption: "Sessions",
    key: (peer) => peer.peer + " " + peer.connected_ms + " " + peer.address,
    columns: [
      { title: "Peer", value: (peer) => peer.peer },
      { title: "Kind", value: (peer) => peer.kind },
      { title: "Address", value: (peer) => peer.address },
      { title: "For", number: true, value: (peer) => -peer.connected_ms, show: (peer) => ago(peer.connected_ms) },
      { title: "Published", number: true, value: (peer) => peer.published, show: (peer) => count(peer.published) },
      { title: "Delivered", number: true, value: (peer) => peer.delivered, show: (peer) => count(peer.delivered) },
      { title: "Queued", number: true, value: (peer) => peer.queued, show: (peer) => count(peer.queued) + (peer.queued_bytes ? ", " + bytes(peer.queued_bytes) : "") },
      { title: "Dropped", number: true, value: (peer) => peer.dropped, fill: (cell, peer) => { cell.textContent = count(peer.dropped); cell.classList.toggle("alarm", peer.dropped > 0); } },
      { title: "Denied", number: true, value: (peer) => peer.denied, fill: (cell, peer) => { cell.textContent = count(peer.denied); cell.classList.toggle("alarm", peer.denied > 0); } },
      { title: "Program", wide: true, value: (peer) => peer.program },
    ],
  });
  const refused = table({
    caption: "Refused connections",
    key: (one) => one.at_ms + " " + one.code + " " + one.address + " " + one.key,
    empty: "No connection was refused since the broker started.",
    columns: [
      { title: "Ago", number: true, value: (one) => -one.at_ms, show: (one) => ago(one.at_ms) },
      { title: "Code", value: (one) => one.code, fill: (cell, one) => badge(cell, one.code) },
      { title: "Peer", value: (one) => one.peer },
      { title: "Address", value: (one) => one.address },
      { title: "Reason", wide: true, value: (one) => one.text },
    ],
  });
  const denied = table({
    caption: "Denied operations",
    key: (one) => one.peer + " " + one.operation + " " + one.topic + " " + one.code,
    empty: "Nothing was denied since the broker started.",
    columns: [
      { title: "Last, ago", number: true, value: (one) => -one.last_ms, show: (one) => ago(one.last_ms) },
      { title: "Peer", value: (one) => one.peer },
      { title: "Operation", value: (one) => one.operation },
      { title: "Topic", value: (one) => one.topic },
      { title: "Count", number: true, value: (one) => one.count, show: (one) => count(one.count) },
      { title: "Reason", wide: true, value: (one) => one.text },
    ],
  });
  const peer = make("input", { required: true, spellcheck: false, value: "operator", data: { search: "" } });
  const operation = make("select", {}, ...["publish", "subscribe", "request", "serve"].map((one) => new Option(one, one)));
  const topic = make("input", { required: true, spellcheck: false, placeholder: "greetings/hello" });
  const answer = make("div", { role: "status" });
  const form = make("form", { className: "bar", on: { submit: (event) => { event.preventDefault(); why().catch(problem); } } },
    field("Why may", peer), field("or not", operation), field("on", topic), make("button", { type: "submit" }, "Explain"));
  root.append(sessions.element, refused.element, denied.element, make("h2", {}, "Why?"), form, answer);

  async function why() {
    const said = await get("/v1/bus/why?" + new URLSearchParams({ peer: peer.value.trim(), operation: operation.value, topic: topic.value.trim() }));
    const verdict = make("p", {}, "Verdict: ");
    badge(verdict.appendChild(make("span", {})), said.verdict);
    answer.replaceChildren(verdict, make("ol", { className: "steps" }, ...said.steps.map((step) => make("li", { className: step.ok ? "good" : "bad" }, make("strong", {}, step.step), " " + (step.ok ? "yes" : "no") + ": " + step.text))));
    show("");
  }

  return poll(EVERY_MS, async (signal) => {
    const [peers, refusals] = await Promise.all([get("/v1/bus/peers", { signal }), get("/v1/bus/refusals", { signal })]);
    sessions.update(peers.peers);
    refused.update(refusals.refusals);
    denied.update(refusals.denials || []);
  }).stop;
}

export default { name: "peers", title: "Peers", start };
