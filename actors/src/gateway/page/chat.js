/* Conversations. */

import { ask, make } from "./dom.js";
import { call, events, get, remember, send } from "./api.js";
import { problem, show } from "./problem.js";

const fresh = () => "web-" + Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
const at = (id) => "/v1/conversations/" + encodeURIComponent(id);

function start(root) {
  let conversation = remember.get("conversation") || fresh();
  let known = new Map();
  let turn = null; // AbortController of the running turn

  const select = make("select", { id: "conversations", on: { change: () => { halt(); open(select.value).catch(problem); } } });
  const newOne = make("button", { id: "new", type: "button", on: { click: () => { halt(); open(fresh()).then(list).catch(problem); text.focus(); } } }, "New");
  const remove = make("button", { id: "delete", type: "button", className: "quiet", on: { click: () => forget().catch(problem) } }, "Delete");
  const notice = make("p", { id: "notice", className: "notice", role: "note", hidden: true });
  const empty = make("p", { id: "empty", className: "empty" }, "Say something to begin.");
  const messages = make("div", { id: "messages", role: "log", "aria-live": "polite", "aria-relevant": "additions text", "aria-label": "Conversation", tabIndex: 0 }, empty);
  const text = make("textarea", { id: "text", rows: 1, placeholder: "Message", title: "Enter sends, Shift+Enter breaks the line", required: true, data: { search: "" } });
  const sendButton = make("button", { id: "send", type: "submit" }, "Send");
  const stopButton = make("button", { id: "stop", type: "button", hidden: true, on: { click: halt } }, "Stop");
  const form = make("form", { id: "form" }, make("label", { className: "hidden", htmlFor: "text" }, "Message"), text, sendButton, stopButton);
  root.append(
    make("div", { className: "bar" }, make("label", { className: "hidden", htmlFor: "conversations" }, "Conversation"), select, newOne, remove),
    notice, messages, form,
  );

  function halt() {
    if (turn) turn.abort();
  }

  function scroll() {
    messages.scrollTop = messages.scrollHeight;
  }

  /* Adds a message and returns it with the paragraph its text goes into. */
  function add(role, said) {
    empty.hidden = true;
    const paragraph = make("p", {}, said);
    const article = make("article", { className: role }, make("div", { className: "who" }, role === "user" ? "You" : "Interlock"), paragraph);
    messages.append(article);
    scroll();
    return { article, paragraph };
  }

  async function list() {
    const { conversations } = await get("/v1/conversations");
    known = new Map(conversations.map((one) => [one.id, one]));
    select.replaceChildren();
    if (!known.has(conversation)) select.append(new Option("New conversation", conversation));
    for (const one of conversations) select.append(new Option(one.title || one.id, one.id));
    select.value = conversation;
    remove.disabled = !known.has(conversation);
  }

  async function open(id) {
    conversation = id;
    remember.set("conversation", id);
    messages.querySelectorAll("article").forEach((article) => article.remove());
    empty.hidden = false;
    show("");
    remove.disabled = !known.has(id);
    if (!known.has(id)) return;
    try {
      const answer = await get(at(id));
      for (const message of answer.messages) {
        if (message.role === "system") continue;
        const { article } = add(message.role, message.text);
        if (message.state !== "complete") article.classList.add("failed");
      }
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }

  async function forget() {
    const title = (known.get(conversation) || {}).title || conversation;
    if (!await ask("Delete this conversation?", "All messages of \"" + title + "\" are deleted from the store.", "Delete")) return;
    halt();
    await send("DELETE", at(conversation));
    await open(fresh());
    await list();
  }

  async function say(said) {
    const isFirst = !messages.querySelector("article");
    show("");
    add("user", said);
    const { article, paragraph } = add("assistant", "");
    article.classList.add("busy");
    const mine = new AbortController();
    turn = mine;
    sendButton.hidden = true;
    stopButton.hidden = false;
    let ended = false;
    try {
      const response = await call(at(conversation) + "/messages", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ text: said }),
        signal: mine.signal,
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
      problem(error);
    } finally {
      article.classList.remove("busy");
      sendButton.hidden = false;
      stopButton.hidden = true;
      if (turn === mine) turn = null;
      if (root.isConnected) text.focus();
      if (isFirst) list().catch(problem);
    }
  }

  /* What people should know of the model that answers. */
  async function tell() {
    try {
      const { model } = await get("/v1/status");
      notice.textContent = "Answers come from " + model + ".";
      notice.hidden = false;
    } catch { /* the state above says that a part is down */ }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const said = text.value;
    if (turn || !said.trim()) return;
    text.value = "";
    say(said);
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  list().then(() => open(conversation)).then(() => text.focus()).catch(problem);
  tell();
  return halt;
}

export default { name: "chat", title: "Chat", start };
