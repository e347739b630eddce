"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const NAMES = { plain: "plain", clipped: "clipping only", gru: "with GRU", vector: "task vectors", reference: "references" };
  const SVG = "http://www.w3.org/2000/svg";

  // ---- small things -------------------------------------------------------------------------------------------------

  const $ = (id) => document.getElementById(id);

  function make(name, attributes = {}, children = []) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") element.textContent = value;
      else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (value !== false && value != null) element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }

  function draw(name, attributes = {}, text = null) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== null) element.textContent = text;
    return element;
  }

  const kindOf = (run) => (run.kind === "unlearned" ? run.variant : run.kind === "vector" ? "vector" : "reference");
  // A recipe's own variants have names that no style knows.
  const OTHERS = [...new Set(data.runs.map(kindOf))].filter((kind) => !Object.hasOwn(NAMES, kind));
  const color = (kind) => (OTHERS.includes(kind) ? `hsl(${(150 + 67 * OTHERS.indexOf(kind)) % 360} 55% 45%)` : `var(--${kind})`);
  const unique = (values) => [...new Set(values)];
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const number = (value) =>
    value == null ? "-" : Math.abs(value) >= 100 ? value.toFixed(1) : Math.abs(value) > 1.5 ? value.toFixed(2) : value.toFixed(4);

  function ticks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found.map((value) => ({ value, text: String(Number(value.toPrecision(6))) }));
  }

  function select(label, values, onchange, names = (value) => value) {
    const list = make("select", { onchange: () => onchange(list.value) });
    list.append(...values.map((value) => make("option", { value, text: names(value) })));
    return make("label", {}, [label, list]);
  }

  function checkbox(text, isOn, onchange, swatch = null) {
    const box = make("input", { type: "checkbox", onchange: () => onchange(box.checked) });
    box.checked = isOn;
    const sample = swatch ? [make("span", { class: "swatch", style: `border-color:${swatch.color};border-top-style:${swatch.style || "solid"}` })] : [];
    return make("label", {}, [box, ...sample, text]);
  }

  function redrawn(element, paint) {
    let width = 0;
    new ResizeObserver((entries) => {
      const now = Math.round(entries[0].contentRect.width);
      if (now && now !== width) { width = now; requestAnimationFrame(() => paint(now)); }
    }).observe(element);
    return () => { if (width) paint(width); };
  }

  // ---- tooltip ------------------------------------------------------------------------------------------------------

  const tooltip = $("tooltip");

  function tell(text, x, y) {
    tooltip.textContent = text;
    tooltip.hidden = false;
    const box = tooltip.getBoundingClientRect();
    tooltip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - box.width - 4))}px`;
    tooltip.style.top = `${y + 14 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 14}px`;
  }

  const hush = () => { tooltip.hidden = true; };
  addEventListener("scroll", hush, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hush(); });

  function explains(element, text) {
    element.setAttribute("tabindex", "0");
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", text.replaceAll("\n", ", "));
    element.addEventListener("pointermove", (event) => tell(text, event.clientX, event.clientY));
    element.addEventListener("pointerleave", hush);
    element.addEventListener("blur", hush);
    element.addEventListener("focus", () => {
      const box = element.getBoundingClientRect();
      tell(text, box.x + box.width / 2, box.y + box.height / 2);
    });
  }

  // ---- axes ---------------------------------------------------------------------------------------------------------

  function axes(width, height, xs, ys, labels, left = 56) {
    const pad = { left, right: 14, top: 12, bottom: labels.x ? 42 : 26 };
    const range = (values, room) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const extra = (high - low) * room || Math.abs(high) * 0.1 || 1;
      return [low - extra, high + extra];
    };
    const [x0, x1] = range(xs, labels.tight ? 0 : 0.06);
    const [y0, y1] = range(ys, 0.08);
    const x = (value) => pad.left + ((value - x0) / (x1 - x0)) * (width - pad.left - pad.right);
    const y = (value) => height - pad.bottom - ((value - y0) / (y1 - y0)) * (height - pad.top - pad.bottom);
    const svg = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, height, role: "group" });
    for (const tick of ticks(x0, x1, Math.max(2, width / 85))) {
      svg.append(draw("line", { class: "grid", x1: x(tick.value), x2: x(tick.value), y1: pad.top, y2: height - pad.bottom }));
      svg.append(draw("text", { class: "quiet", x: x(tick.value), y: height - pad.bottom + 16, "text-anchor": "middle" }, tick.text));
    }
    for (const tick of ticks(y0, y1, Math.max(3, height / 50))) {
      svg.append(draw("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(tick.value), y2: y(tick.value) }));
      svg.append(draw("text", { class: "quiet", x: pad.left - 6, y: y(tick.value) + 4, "text-anchor": "end" }, tick.text));
    }
    if (labels.x) svg.append(draw("text", { x: width - pad.right, y: height - 8, "text-anchor": "end" }, labels.x));
    if (labels.y) svg.append(draw("text", { x: -pad.top, y: 14, transform: "rotate(-90)", "text-anchor": "end" }, labels.y));
    return { svg, x, y, pad, invert: (at) => x0 + ((at - pad.left) / (width - pad.left - pad.right)) * (x1 - x0) };
  }

  // ---- sortable tables ----------------------------------------------------------------------------------------------

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const first = [...body.rows];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", text: head.textContent });
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const was = head.getAttribute("aria-sort");
        const now = { none: "ascending", ascending: "descending", descending: "none" }[was];
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", now);
        body.append(...(now === "none" ? first : sorted(first, column, now === "ascending" ? 1 : -1)));
      });
    });
  }

  function sorted(rows, column, sign) {
    const value = (row) => row.cells[column].dataset.sort;
    return [...rows].sort((a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === "" || right === "") return (left === "") - (right === ""); // nothing: always last
      const [x, y] = [Number(left), Number(right)];
      if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return sign * (Number.isNaN(x) ? left.localeCompare(right) : x - y);
    });
  }

  // ---- removal against retention ------------------------------------------------------------------------------------

  const SHAPES = [
    (r) => `M${r},0A${r},${r} 0 1 1 ${-r},0A${r},${r} 0 1 1 ${r},0Z`,
    (r) => `M${-r},${-r}H${r}V${r}H${-r}Z`,
    (r) => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0Z`,
    (r) => `M0,${-1.2 * r}L${1.15 * r},${r}H${-1.15 * r}Z`,
    (r) => `M0,${1.2 * r}L${1.15 * r},${-r}H${-1.15 * r}Z`,
    (r) => `M${-r},${-r / 2.4}H${-r / 2.4}V${-r}H${r / 2.4}V${-r / 2.4}H${r}V${r / 2.4}H${r / 2.4}V${r}H${-r / 2.4}V${r / 2.4}H${-r}Z`,
    (r) => `M${-1.2 * r},0L${r},${1.15 * r}V${-1.15 * r}Z`,
    (r) => `M${1.2 * r},0L${-r},${1.15 * r}V${-1.15 * r}Z`,
    (r) => `M0,${-1.35 * r}L${0.3 * r},${-0.4 * r}L${1.28 * r},${-0.42 * r}L${0.49 * r},${0.16 * r}L${0.79 * r},${1.09 * r}L0,${0.53 * r}` +
      `L${-0.79 * r},${1.09 * r}L${-0.49 * r},${0.16 * r}L${-1.28 * r},${-0.42 * r}L${-0.3 * r},${-0.4 * r}Z`,
    (r) => `M${r},0L${r / 2},${0.87 * r}H${-r / 2}L${-r},0L${-r / 2},${-0.87 * r}H${r / 2}Z`,
  ];

  function plane(root) {
    const shown = data.runs.filter((run) => run.x != null && run.y != null && (run.compared || run.kind !== "unlearned"));
    if (!shown.length) return;
    const methods = unique(shown.map((run) => run.title));
    const shape = (title) => SHAPES[methods.indexOf(title) % SHAPES.length];
    const kinds = unique(shown.map(kindOf));
    const state = { split: shown[0].split, methods: new Set(methods), kinds: new Set(kinds) };
    const chart = make("div");
    const paint = redrawn(chart, (width) => paintPlane(chart, width, shown, state, shape));
    const toggle = (set, value) => (isOn) => { set[isOn ? "add" : "delete"](value); paint(); };
    const group = (name, boxes) => make("fieldset", { "aria-label": name }, boxes);
    const splits = unique(shown.map((run) => run.split));
    root.append(
      make("div", { class: "controls" }, [
        ...(splits.length > 1 ? [select("Split ", splits, (value) => { state.split = value; paint(); })] : []),
        group("Variants", kinds.map((kind) => checkbox(NAMES[kind] || kind, true, toggle(state.kinds, kind), { color: color(kind) }))),
      ]),
      make("div", { class: "controls" }, [
        group("Methods", methods.map((title) => {
          const label = checkbox("", true, toggle(state.methods, title));
          const mark = draw("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" });
          mark.append(draw("path", { d: shape(title)(5), fill: "currentColor" }));
          label.append(mark, title);
          return label;
        })),
      ]),
      chart,
    );
  }

  function paintPlane(chart, width, all, state, shape) {
    const runs = all.filter((run) => run.split === state.split && state.methods.has(run.title) && state.kinds.has(kindOf(run)));
    if (!runs.length) { chart.replaceChildren(make("p", { class: "note", text: "Nothing chosen." })); return; }
    const height = Math.max(320, Math.min(560, width * 0.6));
    const ax = axes(width, height, runs.map((run) => run.x), runs.map((run) => run.y), {
      x: `${data.retention}${width > 560 ? ": " + data.plane[0] : ""}`,
      y: `${data.removal}${width > 560 ? ": " + data.plane[1] : ""}`,
    }, 62);
    ax.svg.setAttribute("aria-label", `${data.removal} against ${data.retention}, ${state.split}`);
    const clouds = new Map();
    for (const run of runs) {
      const key = [run.title, kindOf(run), run.strength, run.kind].join("|");
      clouds.set(key, [...(clouds.get(key) || []), run]);
    }
    const means = [...clouds.values()].map((members) => ({
      members, run: members[0], x: mean(members.map((run) => run.x)), y: mean(members.map((run) => run.y)),
    }));
    for (const from of means.filter((each) => kindOf(each.run) === "plain")) {
      const to = means.find((each) => kindOf(each.run) === "gru" && each.run.title === from.run.title);
      if (to) ax.svg.append(arrow(ax.x(from.x), ax.y(from.y), ax.x(to.x), ax.y(to.y)));
    }
    for (const title of unique(means.filter((each) => each.run.kind === "vector").map((each) => each.run.title))) {
      const path = means.filter((each) => each.run.title === title).sort((a, b) => a.run.strength - b.run.strength);
      const d = path.map((each, i) => `${i ? "L" : "M"}${ax.x(each.x)},${ax.y(each.y)}`).join("");
      ax.svg.append(draw("path", { d, fill: "none", stroke: color("vector"), "stroke-width": 1.2 }));
    }
    for (const { members } of means.filter((each) => each.members.length > 1)) {
      for (const run of members) ax.svg.append(point(ax, run.x, run.y, shape(run.title)(4), run, 0.4, about(run)));
    }
    for (const each of means) {
      const text = each.members.length > 1
        ? `${each.run.label}: mean of ${each.members.length} seeds\n${data.retention} ${number(each.x)}\n${data.removal} ${number(each.y)}` +
          (each.run.strength == null ? "" : `\nstrength ${each.run.strength}`)
        : about(each.run);
      ax.svg.append(point(ax, each.x, each.y, shape(each.run.title)(7), each.run, 1, text));
      if (kindOf(each.run) === "reference") {
        const x = Math.min(ax.x(each.x), width - 36);
        ax.svg.append(draw("text", { x, y: ax.y(each.y) + 22, "text-anchor": "middle" }, each.run.title));
      }
    }
    chart.replaceChildren(ax.svg);
  }

  function about(run) {
    const setting = [
      run.seed == null ? null : `seed ${run.seed}`,
      run.gamma == null ? null : `gamma ${run.gamma}`,
      run.kind === "unlearned" && run.variant !== "plain" ? `tau ${run.tau ?? "none"}` : null,
      run.strength == null ? null : `strength ${run.strength}`,
    ].filter(Boolean).join(", ");
    const scores = Object.entries(run.scores).map(([name, value]) => `${name} ${number(value)}`);
    return [run.label, ...(setting ? [setting] : []), ...scores].join("\n");
  }

  function point(ax, x, y, d, run, opacity, text) {
    const group = draw("g", { transform: `translate(${ax.x(x)},${ax.y(y)})` });
    group.append(draw("path", { d, fill: color(kindOf(run)), opacity, stroke: opacity < 1 ? "none" : "var(--raised)" }));
    explains(group, text);
    return group;
  }

  function arrow(x1, y1, x2, y2) {
    const length = Math.hypot(x2 - x1, y2 - y1);
    if (length < 24) return draw("g");
    const [ux, uy] = [(x2 - x1) / length, (y2 - y1) / length];
    const [ex, ey] = [x2 - 10 * ux, y2 - 10 * uy];
    const head = `M${ex},${ey}L${ex - 8 * ux + 4 * uy},${ey - 8 * uy - 4 * ux}L${ex - 8 * ux - 4 * uy},${ey - 8 * uy + 4 * ux}Z`;
    const group = draw("g", { "aria-hidden": "true" });
    group.append(draw("path", { d: `M${x1 + 9 * ux},${y1 + 9 * uy}L${ex},${ey}`, stroke: "var(--quiet)", "stroke-width": 1.5 }));
    group.append(draw("path", { d: head, fill: "var(--quiet)" }));
    return group;
  }

  // ---- runs over time -----------------------------------------------------------------------------------------------

  const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 4"];
  const OVER_STEPS = {
    retain_loss: "retain loss, nats per token", forget_loss: "forget loss", cos: "cos(g, retain gradient)",
    angle_before: "angle to the retain gradient before, degrees", angle_after: "angle after, degrees",
  };

  function curves(root) {
    const runs = data.runs.filter((run) => run.points.length || Object.keys(run.steps).length);
    if (!runs.length) return;
    const splits = unique(runs.map((run) => run.split));
    const methods = unique(runs.map((run) => run.title));
    const state = { split: splits[0], title: methods[0], chosen: new Set() };
    const list = make("div", { class: "choose", role: "group", "aria-label": "Runs" });
    const charts = make("div", { class: "charts" });
    const paint = redrawn(charts, () => paintCurves(charts, runs.filter((run) => state.chosen.has(run.id))));
    const offer = () => {
      const offered = runs.filter((run) => run.split === state.split && run.title === state.title);
      state.chosen = new Set(offered.filter((run) => run.compared || offered.length < 7).map((run) => run.id));
      list.replaceChildren(...offered.map((run) => checkbox(run.name, state.chosen.has(run.id), (isOn) => {
        state.chosen[isOn ? "add" : "delete"](run.id);
        paint();
      }, { color: color(kindOf(run)), style: ["solid", "dashed", "dotted"][data.seeds.indexOf(run.seed) % 3] || "solid" })));
      paint();
    };
    root.append(
      make("div", { class: "controls" }, [
        ...(splits.length > 1 ? [select("Split ", splits, (value) => { state.split = value; offer(); })] : []),
        select("Method ", methods, (value) => { state.title = value; offer(); }),
        ...unique(runs.map(kindOf)).map((kind) => make("label", {}, [
          make("span", { class: "swatch", style: `border-color:${color(kind)}` }), NAMES[kind] || kind])),
      ]),
      list, charts,
    );
    offer();
  }

  function paintCurves(root, runs) {
    const look = (run) => ({ stroke: color(kindOf(run)), dash: DASHES[Math.max(0, data.seeds.indexOf(run.seed)) % DASHES.length] });
    const panels = Object.entries(OVER_STEPS).map(([name, title]) => [title, "step", runs.map((run) => ({
      run, ...look(run), points: (run.steps[name] || []).map((value, i) => [1 + i * run.every, value]).filter((each) => each[1] != null),
    }))]);
    [data.retention, data.removal].forEach((heading, i) => panels.push([heading, "epoch", runs.map((run) => ({
      run, ...look(run), points: run.points.map((each) => [each[0], each[1 + i]]).filter((each) => each[1] != null),
    }))]));
    root.replaceChildren(...panels.map(([title, unit, lines]) => panel(title, unit, lines.filter((line) => line.points.length)))
      .filter(Boolean));
    if (!root.children.length) root.append(make("p", { class: "note", text: "No run chosen." }));
  }

  function panel(title, unit, lines) {
    if (!lines.length) return null;
    const holder = make("div", {}, [make("h4", { text: title })]);
    const points = lines.flatMap((line) => line.points);
    const width = 352, height = 210;
    const ax = axes(width, height, points.map((each) => each[0]), points.map((each) => each[1]), { x: unit, tight: true }, 50);
    ax.svg.removeAttribute("height");
    for (const line of lines) {
      const d = line.points.map(([x, y], i) => `${i ? "L" : "M"}${ax.x(x).toFixed(1)},${ax.y(y).toFixed(1)}`).join("");
      ax.svg.append(draw("path", { d, fill: "none", stroke: line.stroke, "stroke-width": 1.6, "stroke-dasharray": line.dash }));
    }
    const xs = unique(points.map((each) => each[0])).sort((a, b) => a - b);
    const rule = draw("line", { y1: ax.pad.top, y2: height - ax.pad.bottom, stroke: "var(--ink)", "stroke-width": 1, visibility: "hidden" });
    ax.svg.append(rule);
    const at = (x, clientX, clientY) => {
      rule.setAttribute("x1", ax.x(x));
      rule.setAttribute("x2", ax.x(x));
      rule.setAttribute("visibility", "visible");
      const rows = lines.map((line) => [line, line.points.find((each) => each[0] === x)]).filter((each) => each[1]);
      tell([`${unit} ${Number(x.toPrecision(4))}`, ...rows.slice(0, 12).map(([line, each]) => `${line.run.name}: ${number(each[1])}`)].join("\n"), clientX, clientY);
    };
    const nearest = (x) => xs.reduce((best, each) => (Math.abs(each - x) < Math.abs(best - x) ? each : best));
    const leave = () => { rule.setAttribute("visibility", "hidden"); hush(); };
    let current = 0;
    ax.svg.setAttribute("tabindex", "0");
    ax.svg.setAttribute("role", "img");
    ax.svg.setAttribute("aria-label", `${title}: ${lines.length} runs; arrow keys step through`);
    ax.svg.addEventListener("pointermove", (event) => {
      const box = ax.svg.getBoundingClientRect();
      at(nearest(ax.invert(((event.clientX - box.x) / box.width) * width)), event.clientX, event.clientY);
    });
    ax.svg.addEventListener("pointerleave", leave);
    ax.svg.addEventListener("blur", leave);
    ax.svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      current = Math.max(0, Math.min(xs.length - 1, current + move));
      const box = ax.svg.getBoundingClientRect();
      at(xs[current], box.x + (ax.x(xs[current]) / width) * box.width, box.y + box.height / 2);
    });
    holder.append(ax.svg);
    return holder;
  }

  // ---- generations, runs, commands, theme ---------------------------------------------------------------------------

  function generations(root) {
    const questions = [...document.querySelectorAll("details.question")];
    const splits = unique(questions.map((each) => each.dataset.split));
    const seeds = unique([...document.querySelectorAll("details.question [data-seed]")].map((each) => each.dataset.seed));
    const state = { split: "", seed: seeds[0] || "" };
    const show = () => {
      for (const each of questions) each.hidden = state.split !== "" && each.dataset.split !== state.split;
      for (const each of document.querySelectorAll("details.question [data-seed]")) {
        each.hidden = state.seed !== "" && each.dataset.seed !== state.seed;
      }
    };
    const all = (value) => value || "all";
    root.append(make("div", { class: "controls" }, [
      ...(splits.length > 1 ? [select("Split ", ["", ...splits], (value) => { state.split = value; show(); }, all)] : []),
      ...(seeds.length > 1 ? [select("Seed ", [...seeds, ""], (value) => { state.seed = value; show(); }, all)] : []),
    ]));
    show();
  }

  function copying(holder) {
    const button = make("button", { type: "button", text: "Copy" });
    button.addEventListener("click", async () => {
      const code = holder.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    holder.append(button);
  }

  function themes(button) {
    const root = document.documentElement;
    const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
    const name = () => { button.textContent = isDark() ? "Light" : "Dark"; };
    try { if (localStorage.theme) root.dataset.theme = localStorage.theme; } catch { /* a file that may keep nothing */ }
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.theme = root.dataset.theme; } catch { /* as above */ }
      name();
    });
    name();
  }

  themes($("theme"));
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll(".command").forEach(copying);
  plane($("plane-chart"));
  curves($("curves-chart"));
  if ($("generations-filter")) generations($("generations-filter"));
  $("runs-filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const each of document.querySelectorAll("#runs-list details")) each.hidden = !each.textContent.toLowerCase().includes(wanted);
  });
})();
