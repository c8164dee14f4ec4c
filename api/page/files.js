// Files that the page makes of what it shows. A row is a list of cells.

import { h } from "./dom.js";
import { csv } from "./format.js";

export function saveFile(name, rows) {
  const url = URL.createObjectURL(new Blob([csv(rows)], { type: "text/csv" }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// A button for the file of a table. `rows()` is asked when somebody clicks, so the file has what stands there then.
export function csvButton(id, title, name, rows) {
  return h("button", { type: "button", class: "quiet", id: `${id}-csv`, "aria-label": `${title}: CSV`, onclick: () => saveFile(name(), rows()) }, "CSV");
}
