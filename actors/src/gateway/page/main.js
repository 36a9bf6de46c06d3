/* The page: token, views, keys, theme, health. */

import { byId, make, setText } from "./dom.js";
import { hasToken, health, onRefused, remember, useToken } from "./api.js";
import { show } from "./problem.js";
import chat from "./chat.js";
import start from "./start.js";
import topics from "./topics.js";
import messages from "./messages.js";
import actors from "./actors.js";
import logs from "./logs.js";
import peers from "./peers.js";
import letters from "./letters.js";

const VIEWS = [chat, start, topics, messages, actors, logs, peers, letters];
const HEALTH_EVERY_MS = 5000;
const THEMES = ["system", "light", "dark"];

let stop = () => {};

/* `#/messages?filter=a%2F%23` is the view `messages` with the parameter `filter`. */
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { view: VIEWS.find((view) => view.name === path) || chat, parameters: new URLSearchParams(query || "") };
}

function open() {
  const { view, parameters } = place();
  stop();
  stop = () => {};
  show("");
  for (const link of byId("views").querySelectorAll("a")) {
    if (link.dataset.view === view.name) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else link.removeAttribute("aria-current");
  }
  document.title = view.title + " - Interlock";
  const root = make("section", { className: "view " + view.name, "aria-label": view.title });
  byId("view").replaceChildren(root);
  if (!hasToken()) return;
  stop = view.start(root, parameters) || (() => {});
}

function connect() {
  byId("token-form").hidden = hasToken();
  byId("views").hidden = !hasToken();
  byId("leave").hidden = !hasToken();
  if (!hasToken()) {
    stop();
    stop = () => {};
    byId("view").replaceChildren();
    byId("token").focus();
    return;
  }
  open();
  tellHealth();
}

async function tellHealth() {
  if (!hasToken() || document.hidden) return;
  const pill = byId("health");
  let [word, kind] = ["not reachable", "bad"];
  try {
    const { status } = await health();
    if (status) [word, kind] = [status, status === "running" ? "good" : "bad"];
    else [word, kind] = ["not connected", "bad"];
  } catch { /* said by the word */ }
  setText(pill, word);
  pill.className = "pill " + kind;
}

function theme(next) {
  const chosen = next || remember.get("theme") || "system";
  remember.set("theme", chosen);
  document.documentElement.dataset.theme = chosen;
  setText(byId("theme"), "Theme: " + chosen);
}

const nextTheme = () => theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);

function keys() {
  const rows = VIEWS.map((view, index) => [String(index + 1), view.title])
    .concat([["/", "search or filter"], ["p", "pause what is live"], ["t", "theme"], ["?", "this list"], ["Esc", "leave a field, close a list"]]);
  byId("keys-rows").replaceChildren(...rows.map(([key, what]) => make("tr", {}, make("th", { scope: "row" }, make("kbd", {}, key)), make("td", {}, what))));
  byId("keys").showModal();
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  const inField = event.target.closest("input, textarea, select");
  if (event.key === "Escape" && inField) return inField.blur();
  if (inField || document.querySelector("dialog[open]")) return;
  const search = byId("view").querySelector("[data-search]");
  const pause = byId("view").querySelector("[data-pause]");
  if (event.key === "?") keys();
  else if (event.key === "t") nextTheme();
  else if (event.key === "/" && search) search.focus();
  else if (event.key === "p" && pause) pause.click();
  else if (event.key >= "1" && event.key <= String(VIEWS.length)) location.hash = "#/" + VIEWS[event.key - 1].name;
  else return;
  event.preventDefault();
}

for (const [index, view] of VIEWS.entries()) {
  const link = make("a", { href: "#/" + view.name, data: { view: view.name }, title: view.title + " (" + (index + 1) + ")" }, view.title);
  byId("views").append(link);
}
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(byId("token").value.trim());
  byId("token").value = "";
  show("");
  connect();
});
byId("leave").addEventListener("click", () => { useToken(""); show(""); connect(); setText(byId("health"), "not connected"); byId("health").className = "pill"; });
byId("theme").addEventListener("click", nextTheme);
byId("help").addEventListener("click", keys);
document.addEventListener("keydown", onKey);
window.addEventListener("hashchange", () => { if (hasToken()) open(); });
document.addEventListener("visibilitychange", tellHealth);
onRefused((failure) => { useToken(""); connect(); show(failure.message); });
setInterval(tellHealth, HEALTH_EVERY_MS);
theme();
connect();

