/* Making and changing elements. Text goes in as text, never as markup. */

export const byId = (id) => document.getElementById(id);

/* An element with properties and children; `on` holds listeners, `data` data attributes, other unknown names are attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/* A labelled control. */
export function field(text, control) {
  return make("label", { className: "field" }, make("span", {}, text), control);
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/* Asks before something is done that cannot be taken back. */
export function ask(title, text, yes) {
  const dialog = byId("ask");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
