"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const COLOURS = 7;
  const DASHES = ["", "7 4", "2 3", "10 3 2 3", "14 4"];
  const { runs, attributes } = JSON.parse(document.getElementById("data").textContent);
  const rows = [...document.querySelectorAll("#runs tbody tr")];
  const plots = [...document.querySelectorAll(".plot")];
  const hidden = new Set(); // values of the attribute that colours stand for
  let attribute = "name";
  let values = []; // of that attribute, in the order of the legend

  const element = (name, given = {}, parent = null, text = null) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const isNumber = (text) => text !== "-" && Number.isFinite(Number(text));
  const distinct = (name) => [...new Set(runs.map((run) => run[name]))]
    .sort((a, b) => (isNumber(a) && isNumber(b) ? a - b : a < b ? -1 : 1));
  const line = (value) => {
    const place = values.indexOf(value);
    return { stroke: `var(--c${place % COLOURS})`, "stroke-dasharray": DASHES[(place + Math.floor(place / COLOURS)) % DASHES.length] };
  };
  const sample = (value) => {
    const svg = element("svg", { width: 26, height: 8, "aria-hidden": "true" });
    element("line", { x1: 0, x2: 26, y1: 4, y2: 4, "stroke-width": 3, ...line(value) }, svg);
    return svg;
  };
  const short = (value) => String(Number(value.toPrecision(4)));

  // 1, 2 or 5 times a power of ten apart, about `wanted` of them.
  const ticks = (low, high, wanted) => {
    const rough = (high - low) / wanted || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) found.push(Number((n * step).toPrecision(12)));
    return found;
  };

  const draw = (plot) => {
    plot.textContent = "";
    const name = plot.dataset.curve;
    const shown = runs.map((run, number) => ({ run, number, curve: run.curves[name] }))
      .filter(({ run, curve }) => curve.length && !hidden.has(run[attribute]));
    plot.points = [];
    if (!shown.length) {
      const nothing = document.createElement("p");
      nothing.className = "nothing";
      nothing.textContent = runs.some((run) => run.curves[name].length) ? "All runs are hidden." : "No run has logged any yet.";
      plot.append(nothing);
      return;
    }
    const many = shown.length > 20;
    plot.classList.toggle("many", many);
    const width = Math.max(plot.clientWidth, 240);
    const height = plot.clientHeight;
    const all = shown.flatMap(({ curve }) => curve);
    const lastStep = Math.max(...all.map(([step]) => step), 1);
    const highest = Math.max(...all.map(([, value]) => value));
    const lowest = Math.min(...all.map(([, value]) => value));
    const zero = name === "ap" && lowest > highest / 2 ? lowest - (highest - lowest) * 0.1 : 0;
    const yTicks = ticks(zero, highest || 1, 5);
    const top = Math.max(highest, yTicks[yTicks.length - 1]) + (highest - zero) * 0.03 || 1;
    const left = 14 + 8 * Math.max(...yTicks.map((one) => short(one).length));
    const [right, bottom, above] = [width - 12, height - 40, 12];
    const x = (step) => left + (right - left) * step / lastStep;
    const y = (value) => bottom - (bottom - above) * (value - zero) / (top - zero);
    const svg = element("svg", { width, height, role: "img", "aria-label": plot.previousElementSibling.textContent }, plot);
    for (const value of yTicks) {
      element("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }, svg);
      element("text", { class: "tick", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, svg, short(value));
    }
    for (const step of ticks(0, lastStep, width < 420 ? 3 : 6)) {
      const anchor = x(step) > right - 20 ? "end" : "middle";
      element("text", { class: "tick", x: x(step), y: bottom + 17, "text-anchor": anchor }, svg, step.toLocaleString("en"));
    }
    element("text", { class: "axis", x: (left + right) / 2, y: height - 5, "text-anchor": "middle" }, svg, "step");
    for (const { run, number, curve } of shown) {
      const style = line(run[attribute]);
      const group = element("g", { class: "run", "data-run": number }, svg);
      const places = curve.map(([step, value]) => [x(step), y(value)]);
      element("polyline", { class: "curve", points: places.map((one) => one.join(",")).join(" "), ...style }, group);
      if (places.length <= (many ? 1 : 12)) for (const [cx, cy] of places) element("circle", { cx, cy, r: 3, fill: style.stroke }, group);
      if (run.status !== "finished") {
        const [cx, cy] = places[places.length - 1];
        element("path", { d: `M${cx - 5} ${cy - 5}l10 10m0 -10l-10 10`, stroke: style.stroke, "stroke-width": 2.5 }, group);
      }
      places.forEach(([px, py], place) => plot.points.push([px, py, number, curve[place]]));
    }
  };

  const focus = (number) => {
    for (const plot of plots) {
      plot.classList.toggle("focused", number !== null);
      for (const group of plot.querySelectorAll(".run")) {
        const on = Number(group.dataset.run) === number;
        group.classList.toggle("on", on);
        if (on) group.parentNode.append(group); // above the others
      }
    }
    rows.forEach((row, place) => row.classList.toggle("on", place === number));
  };

  const hideTips = () => {
    for (const tip of document.querySelectorAll(".tip")) tip.remove();
  };

  const point = (plot, event) => {
    const box = plot.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let nearest = null;
    let best = 40 ** 2; // px
    for (const one of plot.points) {
      const distance = (one[0] - px) ** 2 + (one[1] - py) ** 2;
      if (distance < best) [best, nearest] = [distance, one];
    }
    hideTips();
    focus(nearest && nearest[2]);
    if (!nearest) return;
    const [cx, cy, number, [step, value]] = nearest;
    const run = runs[number];
    const tip = document.createElement("div");
    tip.className = "tip";
    const said = Object.entries(attributes).filter(([key]) => run[key] !== "-").map(([key, words]) => `${words} ${run[key]}`);
    const name = document.createElement("b");
    name.textContent = run.name;
    tip.append(name, `step ${step.toLocaleString("en")}: ${short(value)}`);
    for (const words of [said.join(", "), run.status === "finished" ? "" : run.status]) {
      if (words) tip.append(document.createElement("br"), words);
    }
    plot.append(tip);
    const room = plot.clientWidth - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, cx + 14 > room ? cx - tip.offsetWidth - 14 : cx + 14))}px`;
    tip.style.top = `${Math.max(0, Math.min(plot.clientHeight - tip.offsetHeight, cy + 12))}px`;
  };

  const legend = () => {
    const place = document.getElementById("legend");
    place.textContent = "";
    for (const value of values) {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(!hidden.has(value)));
      button.append(sample(value), value === "-" ? "none" : value);
      button.addEventListener("click", () => {
        if (!hidden.delete(value)) hidden.add(value);
        button.setAttribute("aria-pressed", String(!hidden.has(value)));
        plots.forEach(draw);
      });
      place.append(button);
    }
    rows.forEach((row, number) => row.querySelector(".key").replaceChildren(sample(runs[number][attribute])));
  };

  const colourBy = (name) => {
    attribute = name;
    values = distinct(name);
    hidden.clear();
    legend();
    plots.forEach(draw);
  };

  const names = { ...attributes, status: "status", name: "run" };
  // "-" of a run without a result is no other choice, but of a method without a threshold it is.
  const counted = (name) => distinct(name).filter((value) => value !== "-" || name === "threshold").length;
  const choices = Object.keys(names).filter((name) => counted(name) > 1 && (name !== "name" || runs.length <= 24));
  const select = document.getElementById("colour-by");
  for (const name of choices.length ? choices : ["name"]) {
    const option = document.createElement("option");
    option.value = name;
    option.textContent = names[name];
    select.append(option);
  }
  select.addEventListener("change", () => colourBy(select.value));
  document.getElementById("controls").hidden = runs.length === 0;

  for (const plot of plots) {
    plot.addEventListener("pointermove", (event) => point(plot, event));
    plot.addEventListener("pointerdown", (event) => point(plot, event));
    plot.addEventListener("pointerleave", () => { hideTips(); focus(null); });
  }
  rows.forEach((row, number) => {
    row.addEventListener("pointerenter", () => focus(number));
    row.addEventListener("pointerleave", () => focus(null));
    row.addEventListener("focusin", () => focus(number));
    row.addEventListener("focusout", () => focus(null));
  });

  const themes = ["auto", "light", "dark"];
  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length];
    document.documentElement.dataset.theme = next;
    theme.textContent = `Theme: ${next}`;
  });

  colourBy(select.value);
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) plots.forEach(draw);
    width = window.innerWidth;
  });
})();
