// Everything that the page asks the server. A credential is sent in a header, and kept in this tab alone.

const KEPT = "spendstream.credential";

// The API's own address, worked out from the page's: a proxy's prefix stays.
export const BASE = new URL("..", new URL(".", import.meta.url)).pathname;

export class Problem extends Error {
  constructor(status, detail, requestId, retryAfterS) {
    super(detail);
    this.status = status;
    this.requestId = requestId;
    this.retryAfterS = retryAfterS;
  }
}

// Is it worth asking again in a moment? The server, its database or the network is away; the question is right.
export const passes = (error) => error instanceof Problem && (error.status === 0 || error.status === 429 || error.status >= 500);

export function credential() {
  return sessionStorage.getItem(KEPT);
}

export function keep(text) {
  if (text) sessionStorage.setItem(KEPT, text);
  else sessionStorage.removeItem(KEPT);
}

// A key of ours goes into X-API-Key, anything else is a token.
function headers() {
  const kept = credential();
  if (!kept) return {};
  return kept.split(".").length === 3 ? { Authorization: `Bearer ${kept}` } : { "X-API-Key": kept };
}

let ahead = 0;
// The server's time: its clock decides what is fresh, and the one of this machine may be wrong.
export const now = () => Date.now() + ahead;

export async function ask(path, query = {}, { method = "GET", body, signal, more = {} } = {}) {
  const url = new URL(BASE + path, location.origin);
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== null && one !== undefined) url.searchParams.append(name, one);
  }
  const sent = { ...headers(), ...more, ...(body ? { "Content-Type": "application/json" } : {}) };
  let response;
  try {
    response = await fetch(url, { method, headers: sent, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server cannot be reached.", null, 3);
  }
  const date = Date.parse(response.headers.get("Date"));
  if (Math.abs(date + 500 - Date.now()) > 5000) ahead = date + 500 - Date.now();
  else ahead = 0;
  if (response.ok) return response.status === 204 ? null : response.json();
  throw await problem(response);
}

async function problem(response) {
  let said = {};
  try {
    said = await response.json();
  } catch {
    // A proxy in between may answer with anything.
  }
  const faults = (said.errors ?? []).map((fault) => `${fault.field}: ${fault.message}`).join("; ");
  const detail = [said.detail ?? said.title ?? `The server answered ${response.status}.`, faults].filter(Boolean).join(" ");
  const id = response.headers.get("X-Request-ID") ?? (said.instance ?? "").replace("urn:uuid:", "") ?? null;
  return new Problem(response.status, detail, id, Number(response.headers.get("Retry-After")) || null);
}

// Every page of a list, up to a bound. `cut` says that there are more.
export async function all(path, query, most, options) {
  const items = [];
  let cursor = null;
  let first = null;
  do {
    const page = await ask(path, { ...query, limit: 1000, cursor }, options);
    first ??= page;
    items.push(...(page.items ?? page.series));
    cursor = page.nextCursor;
  } while (cursor && items.length < most);
  return { first, items, cut: Boolean(cursor) };
}

// Server-sent events by fetch, because EventSource can send no header. `tell(event, data)` gets each one. The reader
// connects again until `signal` says stop; `state(text)` is told "live", "away" or "full" (too many are connected).
export async function follow(path, { signal, tell, state }) {
  let last = null;
  let wait = 1000;
  while (!signal.aborted) {
    try {
      const response = await fetch(new URL(BASE + path, location.origin), {
        headers: { ...headers(), Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) },
        signal,
        cache: "no-store",
      });
      if (!response.ok) throw await problem(response);
      state("live");
      wait = 1000;
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        for (const block of blocks) last = hear(block, tell) ?? last;
      }
      state("away");
    } catch (error) {
      if (signal.aborted) return;
      state(error.status === 429 ? "full" : "away");
      if (error.status === 401 || error.status === 403) return;
      wait = Math.min((error.retryAfterS ?? 0) * 1000 || wait * 2, 15_000);
    }
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, wait * (0.75 + Math.random() / 2));
      signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
    });
  }
}

function hear(block, tell) {
  const fields = {};
  for (const line of block.split("\n")) {
    const cut = line.indexOf(": ");
    if (cut > 0) fields[line.slice(0, cut)] = line.slice(cut + 2);
  }
  if (fields.data) tell(fields.event, JSON.parse(fields.data));
  return fields.id;
}
