/* The only place that talks to the gateway. */

const storage = {
  get: (key) => { try { return sessionStorage.getItem(key); } catch { return null; } },
  set: (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* a private window: it lives as long as the page */ } },
  remove: (key) => { try { sessionStorage.removeItem(key); } catch { /* the same */ } },
};

let token = takeToken();
let refused = () => {};

/* The token comes in the fragment, which is never sent to a server; it is taken out of the address at once. */
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    storage.set("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return given || storage.get("token") || "";
}

export const remember = storage;
export const hasToken = () => token !== "";

export function useToken(text) {
  token = text;
  if (text) storage.set("token", text);
  else storage.remove("token");
}

/* `listener` is called whenever the gateway does not take the token. */
export function onRefused(listener) {
  refused = listener;
}

/* What went wrong, with the gateway's own words. */
export class Failure extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/* Numbers that a double cannot hold (nanoseconds) stay what they are, as text. */
function parse(text) {
  return JSON.parse(text, (name, value, context) =>
    (typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && context ? context.source : value));
}

export async function call(path, options = {}) {
  const mine = token;
  const headers = { Authorization: "Bearer " + mine, ...(options.headers || {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("the gateway does not answer; is the runtime still running?", 0, "unreachable");
  }
  if (response.ok) return response;
  let body = null;
  try { body = await response.json(); } catch { /* not our JSON */ }
  const said = body && body.error ? body.error : { message: "the gateway answered " + response.status };
  const failure = new Failure(said.message, response.status, said.code);
  // A late answer to a token that is not used any more says nothing about the present one.
  if (response.status === 401 && mine === token) refused(failure);
  throw failure;
}

export const get = async (path, options) => parse(await (await call(path, options)).text());

/* Sends JSON and reads JSON; an empty answer is `null`. */
export async function send(method, path, body, options = {}) {
  const content = body === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await call(path, { method, ...content, ...options });
  const text = await response.text();
  return text ? parse(text) : null;
}

/* Health has a body worth reading whatever its status. */
export async function health() {
  const response = await fetch("/health", { headers: { Authorization: "Bearer " + token } });
  return response.json();
}

/* Reads server-sent events off a response and hands each to `take(name, data)`. */
export async function events(response, take) {
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
      if (data) take(name, parse(data));
    }
    if (done) return;
  }
}
