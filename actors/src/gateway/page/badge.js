/* A state as a word with a colour; never the colour alone. */

import { make, setText } from "./dom.js";

const GOOD = ["running", "open", "active", "connected", "allow", "yes"];
const BUSY = ["starting", "restarting", "stopping", "waiting", "backing_off", "closed", "degraded", "impaired"];

export function badge(cell, word) {
  const kind = GOOD.includes(word) ? "good" : BUSY.includes(word) ? "busy" : word === "stopped" ? "" : "bad";
  let element = cell.querySelector(".badge");
  if (!element) {
    element = make("span", { className: "badge" });
    cell.replaceChildren(element);
  }
  element.className = "badge " + kind;
  setText(element, String(word).replaceAll("_", " "));
}
