/* Dead letters: what no consumer took. */

import { ask, make, setText } from "./dom.js";
import { get, send } from "./api.js";
import { ago, bytes, count } from "./format.js";
import { poll } from "./poll.js";
import { problem, show } from "./problem.js";
import { table } from "./table.js";

const EVERY_MS = 3000;
const at = (id) => "/v1/admin/dead-letters/" + encodeURIComponent(id);

function start(root) {
  const summary = make("p", { className: "dim", role: "status" });
  const detail = make("section", { className: "card", hidden: true, "aria-label": "Dead letter" });
  const list = table({
    caption: "Dead letters",
    key: (letter) => letter.id + " " + letter.consumer,
    open: (letter) => tell(letter.id).catch(problem),
    empty: "No dead letter. What is published durably and not taken after all attempts comes here.",
    columns: [
      { title: "Died, ago", number: true, value: (letter) => -time(letter), show: (letter) => ago(time(letter)) },
      { title: "Topic", wide: true, value: (letter) => letter.topic },
      { title: "Consumer", value: (letter) => letter.consumer },
      { title: "Attempts", number: true, value: (letter) => letter.attempts, show: (letter) => count(letter.attempts) },
      { title: "Size", number: true, value: (letter) => letter.bytes, show: (letter) => bytes(letter.bytes) },
      { title: "Reason", wide: true, value: (letter) => letter.reason },
      { title: "Orders", value: (letter) => letter.id, fill: orders },
    ],
  });
  root.append(summary, detail, list.element);

  function orders(cell, letter) {
    if (cell.firstChild) return;
    cell.append(make("span", { className: "row" },
      make("button", { type: "button", className: "small", on: { click: () => give("POST", at(letter.id) + "/retry").catch(problem) }, "aria-label": "Retry " + letter.id }, "Retry"),
      make("button", { type: "button", className: "small", on: { click: () => drop(letter).catch(problem) }, "aria-label": "Drop " + letter.id }, "Drop")));
  }

  async function give(method, path) {
    show("");
    await send(method, path);
    asking.now();
  }

  async function drop(letter) {
    if (await ask("Drop this letter?", "The message on " + letter.topic + " is deleted for good.", "Drop")) await give("DELETE", at(letter.id));
  }

  async function tell(id) {
    const letter = await get(at(id));
    detail.replaceChildren(make("h2", {}, letter.topic || id), make("pre", {}, JSON.stringify(letter, null, 2)),
      make("button", { type: "button", className: "quiet", on: { click: () => { detail.hidden = true; } } }, "Close"));
    detail.hidden = false;
  }

  const asking = poll(EVERY_MS, async (signal) => {
    const { deliveries: letters, more } = await get("/v1/admin/dead-letters", { signal });
    list.update(letters);
    setText(summary, letters.length === 0 ? "nothing has failed for good" : count(letters.length) + (more ? " of the oldest dead letters" : letters.length === 1 ? " dead letter" : " dead letters"));
    summary.classList.toggle("alarm", letters.length > 0);
  });
  return asking.stop;
}

const time = (letter) => letter.changed_ms;

export default { name: "letters", title: "Dead letters", start };
