/* What is wrong, said once at the top. */

import { byId } from "./dom.js";

export function show(message) {
  byId("problem").textContent = message || "";
  byId("problem").hidden = !message;
}

export function problem(error) {
  if (error.name !== "AbortError") show(error.message);
}
