// Signing in: a key or a token, kept in this tab until the tab is closed, and sent to this server alone.

import { h } from "./dom.js";

export function signIn({ fault, enter }) {
  const input = h("input", {
    id: "credential", type: "password", autocomplete: "off", spellcheck: "false", required: true,
    "aria-describedby": fault ? "credential-fault credential-help" : "credential-help", "aria-invalid": fault ? "true" : null,
  });
  const form = h("form", {
    class: "panel sign-in",
    onsubmit: (event) => {
      event.preventDefault();
      const text = input.value.trim().replace(/^Bearer\s+/i, "");
      if (text) enter(text);
    },
  },
  h("h1", {}, "Sign in"),
  h("label", { for: "credential" }, "API key or token"),
  input,
  fault && h("p", { class: "fault", id: "credential-fault", role: "alert" }, fault),
  h("p", { class: "sub", id: "credential-help" }, "The page keeps it in this tab until the tab is closed, and sends it to this server alone."),
  h("button", { type: "submit", class: "main" }, "Sign in"));
  return form;
}
