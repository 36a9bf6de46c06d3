"use strict";

const element = (id) => document.getElementById(id);
const storage = {
  get: (key) => { try { return sessionStorage.getItem(key); } catch { return null; } },
  set: (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* a private window: the token lives as long as the page */ } },
};

let token = takeToken();
let conversation = null;
let turn = null; // AbortController of the running turn

/* The token comes in the fragment, which is never sent to a server; it is taken out of the address at once. */
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    storage.set("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return given || storage.get("token") || "";
}

async function call(path, options = {}) {
  const headers = { Authorization: "Bearer " + token, ...(options.headers || {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the gateway does not answer; is the runtime still running?");
  }
  if (response.ok) return response;
  let body = null;
  try { body = await response.json(); } catch { /* not our JSON */ }
  const failure = new Error(body && body.error ? body.error.message : "the gateway answered " + response.status);
  failure.status = response.status;
  throw failure;
}

function show(message) {
  element("problem").textContent = message || "";
  element("problem").hidden = !message;
}

function enable(on) {
  for (const id of ["text", "send", "new", "conversations"]) element(id).disabled = !on;
}

/* Adds a message and returns it with the paragraph its text goes into. */
function add(role, text) {
  element("empty").hidden = true;
  const article = document.createElement("article");
  const who = document.createElement("div");
  const paragraph = document.createElement("p");
  article.className = role;
  who.className = "who";
  who.textContent = role === "user" ? "You" : "Interlock";
  paragraph.textContent = text;
  article.append(who, paragraph);
  element("messages").append(article);
  scroll();
  return { article, paragraph };
}

function scroll() {
  const messages = element("messages");
  messages.scrollTop = messages.scrollHeight;
}

function clear() {
  element("messages").querySelectorAll("article").forEach((article) => article.remove());
  element("empty").hidden = false;
}

function fresh() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return "web-" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/* Reads server-sent events off a response and hands each to `take(name, data)`. */
async function events(response, take) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    rest += decoder.decode(value || new Uint8Array(), { stream: !done });
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let name = "message";
      let data = "";
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (data) take(name, JSON.parse(data));
    }
    if (done) return;
  }
}

async function send(text) {
  const isFirst = !element("messages").querySelector("article");
  show("");
  add("user", text);
  const { article, paragraph } = add("assistant", "");
  article.classList.add("busy");
  turn = new AbortController();
  element("send").hidden = true;
  element("stop").hidden = false;
  let ended = false;
  try {
    const response = await call("/v1/conversations/" + encodeURIComponent(conversation) + "/messages", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text }),
      signal: turn.signal,
    });
    await events(response, (name, data) => {
      if (name === "delta") paragraph.textContent += data.text;
      if (name === "final") { paragraph.textContent = data.text; ended = true; }
      if (name === "error") { ended = true; throw new Error(data.message); }
      scroll();
    });
    if (!ended) throw new Error("the connection was lost before the answer had ended");
  } catch (error) {
    article.classList.add("failed");
    if (!paragraph.textContent) paragraph.textContent = error.name === "AbortError" ? "(stopped)" : "(no answer)";
    if (error.name !== "AbortError") problem(error);
  } finally {
    article.classList.remove("busy");
    element("send").hidden = false;
    element("stop").hidden = true;
    turn = null;
    element("text").focus();
    if (isFirst) list();
  }
}

function problem(error) {
  show(error.message);
  if (error.status === 401) askForToken();
}

function askForToken() {
  enable(false);
  element("token-form").hidden = false;
  element("token").focus();
}

/* Conversations that the server knows; a new one has no history to ask for. */
let known = new Set();

async function list() {
  const { conversations } = await (await call("/v1/conversations")).json();
  known = new Set(conversations.map((one) => one.id));
  const select = element("conversations");
  select.replaceChildren();
  if (!known.has(conversation)) select.append(new Option("New conversation", conversation));
  for (const one of conversations) select.append(new Option(one.title || one.id, one.id));
  select.value = conversation;
}

async function open(id) {
  conversation = id;
  storage.set("conversation", id);
  clear();
  show("");
  if (!known.has(id)) return;
  try {
    const { messages } = await (await call("/v1/conversations/" + encodeURIComponent(id))).json();
    for (const message of messages) {
      if (message.role === "system") continue;
      const { article } = add(message.role, message.text);
      if (message.state !== "complete") article.classList.add("failed");
    }
  } catch (error) {
    if (error.status !== 404) throw error;
  }
}

async function health() {
  const pill = element("health");
  try {
    const response = await fetch("/health", { headers: { Authorization: "Bearer " + token } });
    const { status } = await response.json();
    pill.textContent = status || "not connected";
    pill.className = "pill " + (status === "running" ? "good" : "bad");
  } catch {
    pill.textContent = "not reachable";
    pill.className = "pill bad";
  }
}

async function notice() {
  try {
    const { back_end, notice } = await (await call("/v1/models")).json();
    element("notice").textContent = notice || "Answers come from the back end `" + back_end + "`.";
    element("notice").hidden = false;
  } catch { /* the state above says that a part is down */ }
}

async function connect() {
  if (!token) return askForToken();
  try {
    conversation = storage.get("conversation") || fresh();
    await list();
    await open(conversation);
  } catch (error) {
    return problem(error);
  }
  element("token-form").hidden = true;
  enable(true);
  element("text").focus();
  health();
  notice();
}

element("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = element("token").value.trim();
  storage.set("token", token);
  show("");
  connect();
});
element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = element("text").value;
  if (turn || !text.trim()) return;
  element("text").value = "";
  send(text);
});
element("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("form").requestSubmit();
  }
});
element("stop").addEventListener("click", () => turn && turn.abort());
element("new").addEventListener("click", () => {
  if (turn) turn.abort();
  open(fresh()).then(list).catch(problem);
  element("text").focus();
});
element("conversations").addEventListener("change", (event) => {
  if (turn) turn.abort();
  open(event.target.value).catch(problem);
});
setInterval(() => token && !document.hidden && health(), 15000);
connect();
