/* Asks again and again while a view is shown, never two at a time; a failure is said and does not end it. */

import { problem, show } from "./problem.js";

export function poll(everyMs, work) {
  let timer = null;
  let working = false;
  let wanted = false;
  let failed = false;
  const abort = new AbortController();

  async function ask() {
    try {
      await work(abort.signal);
      if (failed && !abort.signal.aborted) show("");
      failed = false;
    } catch (error) {
      failed = !abort.signal.aborted;
      if (failed) problem(error);
    }
  }

  async function again() {
    clearTimeout(timer);
    wanted = working;
    if (working) return;
    working = true;
    if (!document.hidden) await ask();
    working = false;
    if (!abort.signal.aborted) timer = setTimeout(again, wanted ? 0 : everyMs);
  }

  again();
  return {
    now: again,
    stop: () => { clearTimeout(timer); abort.abort(); },
  };
}
