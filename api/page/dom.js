// Elements are made here and nowhere else. Every text becomes a text node, so a name with markup is shown as it
// is, and nothing that a server or a sender said is ever read as HTML.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value === false || value === null || value === undefined) element.removeAttribute(name);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value);
  }
}

// Puts new children in the place of what is there, unless they look the same: a tick that changes nothing moves
// nothing, so an open list, a selection and the focus stay. What is equal must also do the same when it is clicked.
export function fill(element, ...children) {
  const fresh = document.createElement(element.tagName);
  fresh.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  if (same(element, fresh)) return;
  const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
  element.replaceChildren(...fresh.childNodes);
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function same(before, after) {
  return before.childNodes.length === after.childNodes.length
    && [...before.childNodes].every((child, place) => child.isEqualNode(after.childNodes[place]));
}

// A line of tiny bars or points for a table: decoration, because the figures stand beside it.
export function sparkline(values, label) {
  const width = 96;
  const height = 24;
  const most = Math.max(...values, 0);
  const step = width / Math.max(values.length, 1);
  const bars = values.map((value, place) => {
    const tall = most > 0 ? Math.max(value > 0 ? 1.5 : 0, (value / most) * height) : 0;
    return svg("rect", {
      x: (place * step + 0.75).toFixed(2), y: (height - tall).toFixed(2),
      width: Math.max(step - 1.5, 1).toFixed(2), height: tall.toFixed(2), rx: 1,
    });
  });
  return svg("svg", {
    class: "spark", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label,
  }, ...bars);
}
