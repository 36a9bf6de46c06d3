/* The tail of topics, decoded, and one message to say. */

import { field, make, setText } from "./dom.js";
import { call, events, send } from "./api.js";
import { count, time } from "./format.js";
import { problem, show } from "./problem.js";

/* Messages on the page; the oldest beyond are forgotten. */
const KEPT = 500;
/* Characters of one message that are shown before it is opened. */
const SHORT = 160;

function start(root, parameters) {
  let running = null;
  let paused = false;
  let waiting = [];
  const seen = { messages: 0, lost: 0 };
  const filter = make("input", { value: parameters.get("filter") || "conversation/#", spellcheck: false, required: true, data: { search: "" } });
  const begin = make("button", { type: "submit" }, "Watch");
  const pause = make("button", { type: "button", "aria-pressed": "false", data: { pause: "" }, on: { click: toggle } }, "Pause");
  const clear = make("button", { type: "button", className: "quiet", on: { click: () => { list.replaceChildren(); waiting = []; tell(); } } }, "Clear");
  const summary = make("p", { className: "dim", role: "status" });
  const list = make("ol", { className: "stream", tabIndex: 0, "aria-label": "Messages, the newest first" });
  const watching = make("form", { className: "bar", on: { submit: (event) => { event.preventDefault(); watch(); } } }, field("Topic filter", filter), begin, pause, clear);

  const topic = make("input", { spellcheck: false, required: true, placeholder: "greetings/hello" });
  const payload = make("input", { spellcheck: false, placeholder: "hi, or {\"json\": true}" });
  const result = make("span", { role: "status", className: "dim" });
  const publishing = make("form", { className: "bar", on: { submit: (event) => { event.preventDefault(); publish().catch(problem); } } },
    field("Publish on", topic), field("Payload", payload), make("button", { type: "submit" }, "Publish"), result);
  root.append(watching, summary, list, make("h2", {}, "Say something on the bus"), publishing);

  function tell() {
    const state = !running ? "not watching: " : running.proven ? "watching " + running.filter + ": " : "subscribing to " + running.filter + ": ";
    setText(summary, state + count(seen.messages) + " messages"
      + (seen.lost ? ", " + count(seen.lost) + " LOST because this page or its connection was too slow" : "")
      + (paused ? ", paused with " + waiting.length + " waiting" : ""));
    summary.classList.toggle("alarm", seen.lost > 0);
  }

  function toggle() {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    setText(pause, paused ? "Go on" : "Pause");
    if (!paused) put(waiting.splice(0));
    tell();
  }

  function line(message) {
    const body = message.payload === undefined ? message.payload_base64 : message.payload;
    const text = typeof body === "string" ? body : JSON.stringify(body);
    const details = make("details", {},
      make("summary", {}, make("time", {}, time(at(message))), " ", make("strong", {}, message.topic), " ",
        make("span", { className: "dim" }, message.origin ? "from " + message.origin + " " : ""), text.length > SHORT ? text.slice(0, SHORT) + "..." : text));
    details.addEventListener("toggle", () => {
      if (!details.open || details.querySelector("pre")) return;
      const { payload: inner, ...rest } = message;
      details.append(make("pre", {}, typeof inner === "string" ? inner : JSON.stringify(inner, null, 2)), make("pre", { className: "dim" }, JSON.stringify(rest, null, 2)));
    });
    return make("li", {}, details);
  }

  /* Stock clients do not say when they publish. */
  const at = (message) => (message.at ? Date.parse(message.at) : Date.now());

  function put(messages) {
    list.prepend(...messages.map(line).reverse());
    while (list.children.length > KEPT) list.lastChild.remove();
  }

  function take(name, data) {
    if (name === "message") {
      seen.messages += 1;
      waiting.push(data);
      if (waiting.length > KEPT) waiting.shift();
    } else if (name === "lost") {
      seen.lost += data.count || 1;
      if (!paused) list.prepend(make("li", { className: "alarm" }, count(data.count || 1) + " messages lost" + (data.reason ? ": " + data.reason : "")));
    } else if (name === "denied" || name === "error") {
      show(data.message || data.text || JSON.stringify(data));
    }
  }

  async function watch() {
    if (running) running.abort.abort();
    const mine = { abort: new AbortController(), filter: filter.value.trim(), proven: false };
    running = mine;
    show("");
    history.replaceState(null, "", "#/messages?filter=" + encodeURIComponent(mine.filter));
    seen.messages = 0;
    seen.lost = 0;
    tell();
    try {
      const response = await call("/v1/bus/subscribe?filter=" + encodeURIComponent(mine.filter), { signal: mine.abort.signal });
      // The gateway answers once the broker has acknowledged the subscription.
      mine.proven = true;
      tell();
      await events(response, take);
      if (running === mine) throw new Error("the stream of messages has ended; press Watch to begin again");
    } catch (error) {
      problem(error);
    } finally {
      if (running === mine) running = null;
      tell();
    }
  }

  async function publish() {
    let body = { topic: topic.value.trim(), payload: payload.value };
    try { body = { ...body, payload: JSON.parse(payload.value) }; } catch { /* text as it is */ }
    const answer = await send("POST", "/v1/bus/publish", body);
    setText(result, (answer.subscribers === 0 ? "published; nobody receives it" : "published to " + count(answer.subscribers) + (answer.subscribers === 1 ? " subscriber" : " subscribers"))
      + (answer.dropped ? ", " + count(answer.dropped) + " had no room for it" : ""));
    show("");
  }

  /* Messages may come by the thousand; the page is changed five times a second. */
  const drawing = setInterval(() => {
    if (!paused && waiting.length) put(waiting.splice(0));
    tell();
  }, 200);
  watch();
  return () => {
    clearInterval(drawing);
    const ending = running;
    running = null;
    if (ending) ending.abort.abort();
  };
}

export default { name: "messages", title: "Messages", start };
