/* Live topics: rates, sizes, who publishes and who listens. */

import { field, make, setText } from "./dom.js";
import { get } from "./api.js";
import { ago, bytes, count, rate } from "./format.js";
import { poll } from "./poll.js";
import { problem } from "./problem.js";
import { draw, POINTS, spark } from "./spark.js";
import { table } from "./table.js";

const EVERY_MS = 1000;

/* A topic that was only ever subscribed to has no numbers yet. */
const perSecond = (topic, window) => (topic.messages_per_second ? topic.messages_per_second[window] : 0);
const bytesPerSecond = (topic) => (topic.bytes_per_second ? topic.bytes_per_second["10s"] : 0);
const listeners = (topic) => [...new Set([...(topic.subscribers || []), ...(topic.servers || [])])];
const names = (list, more) => (list.length === 0 ? "nobody" : list.join(", ") + (more ? ", ..." : ""));
const isNews = (topic) => topic.state !== "both" && (topic.servers || []).length === 0;

function start(root, parameters) {
  const history = new Map(); // topic -> { messages, values }
  let paused = false;
  let all = [];
  const filter = make("input", { type: "search", value: parameters.get("filter") || "", placeholder: "part of a name", spellcheck: false, data: { search: "" }, on: { input: show } });
  const system = make("input", { type: "checkbox", on: { change: show } });
  const lonely = make("input", { type: "checkbox", on: { change: show } });
  const pause = make("button", { type: "button", "aria-pressed": "false", data: { pause: "" }, on: { click: toggle } }, "Pause");
  const summary = make("p", { className: "dim", role: "status" });
  const detail = make("section", { className: "card", hidden: true, "aria-label": "Topic" });
  const list = table({
    caption: "Topics",
    key: (topic) => topic.topic,
    open: (topic) => tell(topic.topic).catch(problem),
    empty: "No topic matches.",
    columns: [
      { title: "Topic", wide: true, value: (topic) => topic.topic },
      { title: "Messages/s", number: true, value: (topic) => perSecond(topic, "10s"), show: (topic) => rate(perSecond(topic, "10s")) },
      { title: "Last minute", value: (topic) => perSecond(topic, "60s"), fill: line },
      { title: "Bytes/s", number: true, value: bytesPerSecond, show: (topic) => bytes(bytesPerSecond(topic)) },
      { title: "Messages", number: true, value: (topic) => topic.messages || 0, show: (topic) => count(topic.messages || 0) },
      { title: "Publishers", value: (topic) => names(topic.publishers || [], topic.more_publishers) },
      { title: "Subscribers", value: (topic) => names(listeners(topic)), fill: (cell, topic) => {
        setText(cell, names(listeners(topic)));
        cell.classList.toggle("alarm", isNews(topic));
      } },
      { title: "Last seen", number: true, value: (topic) => -(topic.last_seen_ms || 0), show: (topic) => (topic.last_seen_ms ? ago(topic.last_seen_ms) : "never") },
    ],
  });
  root.append(
    make("div", { className: "bar" }, field("Filter", filter), field("System topics", system), field("Only without publisher or subscriber", lonely), pause),
    summary, detail, list.element,
  );

  function toggle() {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    setText(pause, paused ? "Go on" : "Pause");
  }

  function line(cell, topic) {
    if (!cell.firstChild) cell.append(spark());
    const { values } = history.get(topic.topic);
    draw(cell.firstChild, values, "messages a second of the last " + values.length + " s, now " + rate(values.at(-1)));
  }

  /* What came since the last look is what the line is made of. */
  function remember(topics, at) {
    for (const topic of topics) {
      const known = history.get(topic.topic);
      if (!known) {
        history.set(topic.topic, { messages: topic.messages || 0, at, values: [perSecond(topic, "1s")] });
        continue;
      }
      const seconds = Math.max(0.2, (at - known.at) / 1000);
      known.values.push(Math.max(0, (topic.messages || 0) - known.messages) / seconds);
      if (known.values.length > POINTS) known.values.shift();
      known.messages = topic.messages || 0;
      known.at = at;
    }
    const present = new Set(topics.map((topic) => topic.topic));
    for (const name of history.keys()) if (!present.has(name)) history.delete(name);
  }

  function show() {
    const wanted = filter.value.trim().toLowerCase();
    const shown = all.filter((topic) => (system.checked || !topic.topic.startsWith("$") || wanted.startsWith("$"))
      && (!lonely.checked || isNews(topic)) && topic.topic.toLowerCase().includes(wanted));
    list.update(shown);
    const flow = shown.reduce((sum, topic) => sum + perSecond(topic, "10s"), 0);
    const deaf = all.filter((topic) => topic.state === "published" && !topic.topic.startsWith("$")).length;
    setText(summary, shown.length + " of " + all.length + " topics, " + rate(flow) + " messages a second"
      + (deaf ? "; " + deaf + " published with no subscriber" : ""));
  }

  async function tell(name) {
    const { publishers, subscribers, servers, topic } = parts(await get("/v1/bus/topics/" + name.split("/").map(encodeURIComponent).join("/")));
    const rule = (one) => (one.rule && one.rule.filter ? one.rule.decision + " `" + one.rule.filter + "`, line " + one.rule.line : one.rule ? one.rule.decision : "");
    const item = (one, what) => make("li", {}, make("strong", {}, one.peer), " " + what(one) + (rule(one) ? " (" + rule(one) + ")" : ""));
    const group = (title, list, what) => make("div", {}, make("h3", {}, title), list.length ? make("ul", {}, ...list.map((one) => item(one, what))) : make("p", { className: "dim" }, "nobody"));
    const link = make("a", { href: "#/messages?filter=" + encodeURIComponent(name) }, "Watch its messages");
    const close = make("button", { type: "button", className: "quiet", on: { click: () => { detail.hidden = true; } } }, "Close");
    const facts = topic && topic.statistics ? count(topic.statistics.messages) + " messages, " + bytes(topic.statistics.bytes) + ", largest " + bytes(topic.statistics.largest) : "";
    detail.replaceChildren(
      make("div", { className: "bar" }, make("h2", {}, name), link, close),
      make("p", { className: "dim" }, facts),
      group("Publishers", publishers, (one) => count(one.of_topic.published) + " published, " + count(one.of_topic.denied) + " denied"),
      group("Subscribers", subscribers, (one) => "`" + one.filter + "`, " + one.overflow.replaceAll("_", " ") + ": " + count(one.of_topic.delivered) + " delivered, " + count(one.queued) + " queued, " + count(one.of_topic.dropped) + " dropped"),
      group("Servers", servers, (one) => "`" + one.filter + "`"),
    );
    detail.hidden = false;
    detail.scrollIntoView({ block: "nearest" });
  }

  const asking = poll(EVERY_MS, async (signal) => {
    if (paused) return;
    const { topics } = await get("/v1/bus/topics", { signal });
    all = topics;
    remember(topics, Date.now());
    show();
  });
  return asking.stop;
}

/* The answer about a topic is a list of what has to do with it, each with its role. */
function parts(answer) {
  const of = (role) => answer.parts.filter((one) => one.role === role);
  return { topic: of("topic")[0], publishers: of("publisher"), subscribers: of("subscriber"), servers: of("server") };
}

export default { name: "topics", title: "Topics", start };
