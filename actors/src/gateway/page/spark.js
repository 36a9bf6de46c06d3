/* A small line of the last values. */

import { byId } from "./dom.js";

export const POINTS = 60;

export function spark() {
  return byId("spark").content.firstElementChild.cloneNode(true);
}

/* Draws `values`, the newest at the right; `label` says the same in words. */
export function draw(svg, values, label) {
  const most = Math.max(...values, 0);
  const at = (value, index) => {
    const x = ((POINTS - values.length + index) / (POINTS - 1)) * 100;
    return x.toFixed(1) + "," + (most ? 23 - (value / most) * 22 : 23).toFixed(1);
  };
  svg.firstElementChild.setAttribute("points", values.map(at).join(" "));
  svg.setAttribute("aria-label", label);
}
