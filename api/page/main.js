// Where the page begins: who asks, which view the address names, and the bar on top of every view.

import { fill, h } from "./dom.js";
import { ask, credential, keep, Problem } from "./rest.js";
import { read } from "./view.js";
import { orgsView } from "./orgs.js";
import { orgView } from "./org.js";
import { signIn } from "./sign-in.js";
import { failure } from "./parts.js";

const main = document.getElementById("main");
const top = document.getElementById("top");
const THEMES = ["auto", "light", "dark"];
let caller = null;
let features = new Set();
let shown = null;

async function start() {
  setTheme(localStorage.getItem("spendstream.theme") ?? "auto");
  bar();
  try {
    [caller, features] = await Promise.all([ask("caller"), routes()]);
  } catch (error) {
    if (error instanceof Problem && error.status === 401) return askForCredential(credential() ? error.message : null);
    main.replaceChildren(failure(error, start));
    return undefined;
  }
  window.onhashchange = show;
  show();
  return undefined;
}

// Which routes this server has: sections for what it has not are left out.
async function routes() {
  const document = await ask("openapi.json");
  return new Set(Object.keys(document.paths).map((path) => path.replace("/analytics/v1/", "")));
}

function askForCredential(fault) {
  shown?.end();
  shown = null;
  window.onhashchange = null;
  keep(null);
  bar();
  main.replaceChildren(signIn({ fault, enter: (text) => { keep(text); start(); } }));
  main.querySelector("input")?.focus();
}

function show() {
  const view = read();
  const org = view.org ?? (!caller.allOrgs && caller.orgs?.length === 1 ? caller.orgs[0] : null);
  if (shown && shown.org === org) {
    shown.change({ ...view, org });
    bar();
    return;
  }
  shown?.end();
  const context = {
    caller, features,
    title: (text) => { document.title = `${text} · Spendstream`; bar(text); },
    refused: (error) => askForCredential(error.message),
    say: (text) => { document.getElementById("said").textContent = text; },
  };
  shown = org ? orgView({ ...view, org }, context) : orgsView(view, context);
  shown.org = org;
  main.replaceChildren(shown.element);
  scrollTo(0, 0);
}

let place = "";
function bar(text) {
  place = text ?? place;
  const many = caller && (caller.allOrgs || (caller.orgs?.length ?? 0) > 1);
  fill(top,
    h("a", { class: "brand", href: "#/", id: "brand" }, h("img", { src: "icon.svg", alt: "", width: 24, height: 24 }), "Spendstream"),
    h("nav", { "aria-label": "Place" }, caller && many && shown?.org && [h("a", { href: "#/", id: "to-orgs" }, "All orgs"), h("span", { "aria-hidden": "true" }, "/")],
      caller && h("span", { class: "here", "aria-current": "page" }, place)),
    h("div", { class: "tools" },
      h("a", { href: "../docs", id: "to-docs" }, "API"),
      themeButton(),
      caller && credential() && h("button", { type: "button", class: "quiet", id: "sign-out", onclick: () => { caller = null; place = ""; askForCredential(null); } }, "Sign out")));
}

function themeButton() {
  const now = document.documentElement.dataset.choice ?? "auto";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  return h("button", { type: "button", class: "quiet", id: "theme", "aria-label": `Colours: ${now}. Change to ${next}`, onclick: () => { setTheme(next); bar(); } },
    { auto: "Auto", light: "Light", dark: "Dark" }[now]);
}

function setTheme(choice) {
  document.documentElement.dataset.choice = choice;
  if (choice === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
  localStorage.setItem("spendstream.theme", choice);
  shown?.redraw?.();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown?.redraw?.());

start();
