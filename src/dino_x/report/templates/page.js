"use strict";
// Values on hover and by the arrow keys, and large pictures. The page says all it has to say
// without this script, which fetches nothing: the page's policy allows no other script.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);
  const SVG = "http://www.w3.org/2000/svg";

  function shown(value) {
    const size = Math.abs(value);
    if (value !== 0 && (size >= 1e9 || size < 1e-3)) return value.toExponential(2);
    return String(Number(value.toPrecision(size >= 100 ? 9 : 4)));
  }

  function say(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 4)) + "px";
    tip.style.top = (y + 22 + box.height > innerHeight ? y - box.height - 10 : y + 16) + "px";
  }

  function within(svg, event) {
    const place = new DOMPoint(event.clientX, event.clientY);
    return place.matrixTransform(svg.getScreenCTM().inverse());
  }

  function nearest(values, wanted) {
    let best = 0;
    values.forEach((value, i) => {
      if (Math.abs(value - wanted) <= Math.abs(values[best] - wanted)) best = i;
    });
    return best;
  }

  function curve(svg) {
    const data = JSON.parse(svg.dataset.hover);
    const [left, right, top, bottom, xLow, xHigh, yLow, yHigh, log] = data.frame;
    const steps = [...new Set(data.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    const across = (x) => left + ((x - xLow) / (xHigh - xLow)) * (right - left);
    const scale = log ? Math.log : (y) => y;
    const down = (y) =>
      bottom - ((scale(y) - scale(yLow)) / (scale(yHigh) - scale(yLow))) * (bottom - top);
    const marks = document.createElementNS(SVG, "g");
    marks.setAttribute("class", "hovered");
    svg.append(marks);
    let at = steps.length - 1;
    function put(i, x, y) {
      at = Math.max(0, Math.min(steps.length - 1, i));
      const step = steps[at];
      const words = [];
      marks.replaceChildren();
      const line = document.createElementNS(SVG, "path");
      line.setAttribute("class", "axis");
      line.setAttribute("d", `M${across(step)} ${top}V${bottom}`);
      marks.append(line);
      for (const one of data.lines) {
        const near = nearest(one.x, step);
        if (Math.abs(one.x[near] - step) > (xHigh - xLow) / 50 && one.x.length > 1) continue;
        const dot = document.createElementNS(SVG, "circle");
        dot.setAttribute("class", "dot s" + one.style);
        dot.setAttribute("cx", across(one.x[near]));
        dot.setAttribute("cy", down(one.y[near]));
        dot.setAttribute("r", 3.5);
        marks.append(dot);
        words.push((data.lines.length > 1 ? one.label + " " : "") + shown(one.y[near]));
      }
      say(`${data.x} ${shown(step)}: ${words.join(", ")} ${data.unit}`.trimEnd(), x, y);
    }
    function leave() {
      marks.replaceChildren();
      tip.hidden = true;
    }
    svg.addEventListener("pointermove", (event) => {
      const wanted = xLow + ((within(svg, event).x - left) / (right - left)) * (xHigh - xLow);
      put(nearest(steps, wanted), event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (!move) return;
      event.preventDefault();
      const box = svg.getBoundingClientRect();
      put(at + move, box.left + box.width / 2, box.bottom - 30);
    });
  }

  function points(svg) {
    const all = JSON.parse(svg.dataset.points);
    svg.addEventListener("pointermove", (event) => {
      const { x, y } = within(svg, event);
      const far = (point) => Math.hypot(point[0] - x, point[1] - y);
      const best = all.reduce((one, other) => (far(other) < far(one) ? other : one));
      if (far(best) < 12) say(best[2], event.clientX, event.clientY);
      else tip.hidden = true;
    });
    svg.addEventListener("pointerleave", () => (tip.hidden = true));
  }

  const large = document.createElement("dialog");
  large.setAttribute("aria-label", "Enlarged");
  document.body.append(large);
  large.addEventListener("click", () => large.close());
  // A dialog has its own layer above the page: the values have to be in it to be seen.
  large.addEventListener("close", () => document.body.append(tip));
  function enlarge(what, words) {
    const text = document.createElement("p");
    text.textContent = words;
    const close = document.createElement("button");
    close.textContent = "Close";
    large.replaceChildren(close, what, text, tip);
    tip.hidden = true;
    large.showModal();
  }

  function button(target, name, open) {
    const made = document.createElement("button");
    made.className = "larger";
    made.type = "button";
    made.textContent = "\u2922";
    made.title = "Larger";
    made.setAttribute("aria-label", "Enlarge: " + name);
    made.addEventListener("click", open);
    target.append(made);
  }

  for (const svg of document.querySelectorAll("svg[data-hover], svg[data-points]")) {
    const set = svg.dataset.hover ? curve : points;
    set(svg);
    const figure = svg.closest("figure");
    const words = figure.querySelector("figcaption").textContent;
    button(figure.querySelector("h3, h4"), svg.getAttribute("aria-label"), () => {
      const copy = svg.cloneNode(true);
      copy.querySelectorAll(".hovered").forEach((old) => old.remove());
      set(copy);
      enlarge(copy, words);
    });
  }
  for (const image of document.querySelectorAll(".strips img, .pairs img")) {
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.classList.add("can-be-larger");
    const open = () => {
      const copy = image.cloneNode();
      copy.removeAttribute("tabindex");
      copy.removeAttribute("role");
      enlarge(copy, image.alt);
    };
    image.addEventListener("click", open);
    image.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        open();
      }
    });
  }
})();
