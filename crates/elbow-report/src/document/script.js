// Shows the numbers under the pointer: of every curve of a figure the point that is nearest to it along the axis.
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const numbers = (text) => text.trim().split(/[\s,]+/).map(Number);
  const value = ([from, to, start, end], at) => from + ((at - start) / (end - start)) * (to - from);
  const words = (number) => String(Number(number.toPrecision(4))).replace("-", "\u2212");

  // Of each name the nearest point: [x, y, color].
  const nearest = (plot, x) => {
    const found = new Map();
    for (const mark of plot.querySelectorAll("[data-name]")) {
      const line = mark.tagName === "polyline";
      const at = line ? numbers(mark.getAttribute("points")) : [Number(mark.getAttribute("cx")), Number(mark.getAttribute("cy"))];
      const key = mark.dataset.name + (mark.classList.contains("thin") ? " (thin)" : "");
      for (let i = 0; i < at.length; i += 2) {
        const best = found.get(key);
        if (!best || Math.abs(at[i] - x) < Math.abs(best.x - x)) {
          found.set(key, { x: at[i], y: at[i + 1], name: mark.dataset.name, color: line ? mark.style.stroke : mark.style.fill });
        }
      }
    }
    return [...found.values()];
  };

  const hide = (plot) => {
    tip.hidden = true;
    plot.querySelector(".cursor")?.remove();
  };

  const show = (plot, event) => {
    const box = plot.getBoundingClientRect();
    const scale = plot.viewBox.baseVal.width / box.width;
    const [across, down] = [numbers(plot.dataset.x), numbers(plot.dataset.y)];
    const points = nearest(plot, (event.clientX - box.left) * scale);
    hide(plot);
    if (points.length === 0) return;
    const x = (event.clientX - box.left) * scale;
    const at = points.reduce((best, point) => (Math.abs(point.x - x) < Math.abs(best.x - x) ? point : best)).x;
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, number] of [["x1", at], ["x2", at], ["y1", down[2]], ["y2", down[3]]]) line.setAttribute(name, number);
    line.setAttribute("class", "cursor");
    plot.append(line);
    tip.replaceChildren(`${plot.dataset.unit} ${words(value(across, at))}`);
    for (const point of points.filter((point) => Math.abs(point.x - at) < 1)) {
      const [row, color, number] = ["div", "i", "b"].map((name) => document.createElement(name));
      color.style.background = point.color;
      number.textContent = words(value(down, point.y));
      row.append(color, `${point.name} `, number);
      tip.append(row);
    }
    tip.hidden = false;
    const left = event.clientX + 16 + tip.offsetWidth < innerWidth ? event.clientX + 16 : event.clientX - 16 - tip.offsetWidth;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 4)}px`;
  };

  for (const plot of document.querySelectorAll("svg.plot")) {
    plot.addEventListener("pointermove", (event) => show(plot, event));
    plot.addEventListener("pointerdown", (event) => show(plot, event));
    plot.addEventListener("pointerleave", () => hide(plot));
  }
})();
