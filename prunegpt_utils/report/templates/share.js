// The shared page: chart, table and slider tell of the same runs. Everything is in #data.
const data = JSON.parse(document.getElementById("data").textContent);
const study = document.querySelector(".from b").textContent;
const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const percent = (share) => `${+(100 * share).toFixed(1)} %`;

/** An element with properties, or attributes where the name has a dash, and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

// ---- copying commands

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // not allowed on this page: by way of a selection
    const field = make("textarea", { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

function copyButton(text) {
  const button = make("button", { type: "button", textContent: "Copy", title: text, "aria-label": `Copy: ${text}` });
  button.addEventListener("click", async () => {
    await copy(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

for (const place of all(".again")) place.append(copyButton(find("code", place).textContent));

// ---- records, each behind the address #record-<run>

const dialog = find("#record");
const templates = Object.fromEntries(all("template[data-run]").map((one) => [one.dataset.run, one]));
const rows = all("table.sortable tbody tr");
const runsOf = (row) => row.dataset.runs.trim().split(/\s+/).filter(Boolean);
const rowOf = (run) => rows.find((row) => runsOf(row).includes(run));
const recordLink = (run, text) => make("a", { href: `#record-${run}`, textContent: text });

function openRecord(run) {
  find("#record-title").textContent = run;
  const others = (rowOf(run) ? runsOf(rowOf(run)) : []).filter((other) => other !== run);
  const command = `make rerun RUN=${study}/${run}`;
  const about = find("#record-about");
  about.replaceChildren("What one executed notebook wrote in its last cell, numbers to six digits. Again: ",
    make("code", {}, command), " ", copyButton(command));
  if (others.length) about.append(` One of ${others.length + 1} seeds, of which the table shows the mean. The others: `, ...others.flatMap((other) => [recordLink(other, other), " "]));
  const notebook = document.getElementById(`notebook-${run}`);
  if (notebook) about.append(make("a", { href: `#notebook-${run}`, textContent: "Its executed notebook" }));
  find("#record-parts").replaceChildren(templates[run].content.cloneNode(true));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function follow() {
  const run = decodeURIComponent(location.hash).replace(/^#record-/, "");
  if (location.hash.startsWith("#record-") && templates[run]) {
    openRecord(run);
    if (rowOf(run)) pick(run);
    return;
  }
  if (dialog.open) dialog.close();
  const target = location.hash.startsWith("#notebook-") && document.getElementById(location.hash.slice(1));
  if (target) {
    target.open = true;
    target.scrollIntoView();
  }
}

dialog.addEventListener("close", () => {
  if (location.hash.startsWith("#record-")) history.replaceState(null, "", location.pathname + location.search);
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
find(".close", dialog).addEventListener("click", () => dialog.close());
window.addEventListener("hashchange", follow);

for (const key of all("[data-shade]")) key.style.background = shade(Number(key.dataset.shade));
for (const link of all("a[data-record]")) if (templates[link.dataset.record]) link.href = `#record-${link.dataset.record}`;

// ---- the table: names mark, numbers open, a text filters

for (const row of rows.filter((row) => runsOf(row).length)) {
  const [run] = runsOf(row);
  const name = row.cells[0];
  const button = make("button", { type: "button", title: "Mark in the chart", "aria-pressed": "false" }, ...name.childNodes);
  button.addEventListener("click", () => {
    pick(run);
    find("#plot").scrollIntoView({ block: "center" });
  });
  name.append(button);
  for (const cell of [...row.cells].slice(1, -2)) {
    // the seeds of the row lead to the same records with the keyboard
    const link = cell.textContent && make("a", { href: `#record-${run}`, className: "quiet", tabIndex: -1 }, ...cell.childNodes);
    if (link) cell.append(link);
  }
}

find("#filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/[\s,%]+/).filter(Boolean);
  for (const row of rows) {
    const text = `${row.cells[0].textContent} ${row.cells[1].textContent} ${row.dataset.runs}`.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  find("#matches").textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
});

// ---- the chart

const SYMBOLS = { o: "circle", s: "square", D: "diamond", "^": "triangle", v: "wye", X: "star", P: "cross", p: "hexagon" };
for (const point of data.points) point.series = `${point.base_recipe} ${point.colour} ${point.marker}`;
// each is called as its first run is, which comes before its variants
const series = [...new Map([...data.points].reverse().map((point) => [point.series, point])).values()].reverse();
const average = (points) => points.reduce((sum, point) => sum + point.test, 0) / points.length;
const dense = average(data.points.filter((point) => point.dense)) || null;
// black is the ink, whatever the paper; others are lighter on a dark one
const tone = (colour) => (colour === "#000000" ? "currentColor" : `color-mix(in srgb, ${colour} var(--tone), white)`);
const short = (label) => label.replace(/: .*/, "");
const lowest = Math.min(dense ?? Infinity, ...data.points.map((point) => point.test));
const above = data.points.filter((point) => point.test > 2 * lowest);
let picked = null;

function describe(point) {
  const ratio = point.test_ratio ? `, ${point.test_ratio.toFixed(2)} x best dense` : "";
  return `${short(point.label)}\n${point.sparsity ? `${percent(point.sparsity)} gone` : "nothing removed"}, seed ${point.seed}\n` +
    `test perplexity ${point.test.toPrecision(4)}${ratio}\nrecord ${point.run}`;
}

/** Means over seeds of each recipe and sparsity. */
function means(points) {
  const groups = {};
  for (const point of points) (groups[`${point.recipe} ${point.sparsity}`] ??= []).push(point);
  return Object.values(groups)
    .map((same) => ({ ...same[0], test: average(same) }))
    .sort((a, b) => a.sparsity - b.sparsity);
}

const unheard = { ariaHidden: "true" };  // the marks say what lines and tips show

function draw() {
  const box = find("#plot");
  const narrow = box.clientWidth < 600;
  const shown = find("#all input").checked ? data.points : data.points.filter((point) => !above.includes(point));
  if (!shown.length) return;
  const values = [...shown.map((point) => point.test), ...(dense ? [dense] : [])];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high / low) ** 0.06;
  const ordinal = (range) => ({ domain: series.map((one) => one.series), range: series.map(range) });
  const chart = Plot.plot({
    width: box.clientWidth, height: narrow ? 340 : 440, marginLeft: 46, marginRight: 24, marginBottom: 42, marginTop: 26,
    ariaLabel: "Test perplexity against sparsity",
    ariaDescription: `${shown.length} runs; the table below has the same numbers.`,
    x: { label: "share of the block weights gone", domain: [-0.02, 1], ticks: [0, 0.2, 0.4, 0.6, 0.8, 1], tickFormat: percent, nice: false },
    y: { type: high / low > 3 ? "log" : "linear", domain: [low / room, high * room], label: "test perplexity (lower is better)", ticks: narrow ? 5 : 8, tickFormat: (value) => `${+value.toPrecision(3)}`, grid: true },
    color: ordinal((one) => tone(one.colour)),
    symbol: ordinal((one) => SYMBOLS[one.marker] ?? "circle"),
    marks: [
      dense && Plot.ruleY([dense], { stroke: "currentColor", strokeDasharray: "6 4", strokeOpacity: 0.7, ...unheard }),
      dense && Plot.text([dense], {
        frameAnchor: "left", dx: narrow ? 34 : box.clientWidth / 8, y: (level) => level, dy: 10, textAnchor: "start",
        text: (level) => (narrow ? "best dense" : `best dense model, ${level.toFixed(2)}`), fill: "currentColor", stroke: "var(--paper)", ...unheard,
      }),
      Plot.lineY(means(shown), { x: "sparsity", y: "test", z: "recipe", stroke: "series", strokeWidth: 2, ...unheard }),
      Plot.dot(shown, { x: "sparsity", y: "test", fill: "series", symbol: "series", r: narrow ? 4.5 : 5.5, stroke: "currentColor", strokeWidth: 0.6, ariaLabel: describe, className: "runs" }),
      Plot.tip(shown, Plot.pointer({ x: "sparsity", y: "test", title: describe, maxRadius: 30, lineHeight: 1.3, ...unheard })),
    ],
  });
  chart.setAttribute("role", "group");
  chart.addEventListener("click", () => { if (chart.value) pick(chart.value.run); });
  box.replaceChildren(legend(), chart);
  reach(chart, shown);
  mark();
}

function legend() {
  const list = make("ul", { className: "keys" });
  for (const one of series) {
    const symbol = Plot.plot({
      width: 14, height: 14, margin: 0, axis: null, x: { domain: [0, 1] }, y: { domain: [0, 1] },
      marks: [Plot.dot([[0.5, 0.5]], { fill: tone(one.colour), symbol: SYMBOLS[one.marker] ?? "circle", r: 5, stroke: "currentColor", strokeWidth: 0.6 })],
    });
    symbol.setAttribute("aria-hidden", "true");
    list.append(make("li", {}, symbol, short(one.label)));
  }
  return list;
}

/** One mark is reached with Tab, the others from it with the arrows. */
function reach(chart, shown) {
  const group = find("[aria-label='dot']", chart);
  const marks = [...group.children];
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "Runs");
  marks.forEach((element, place) => {
    const point = shown.find((one) => describe(one) === element.getAttribute("aria-label"));
    element.dataset.run = point.run;
    element.setAttribute("aria-label", describe(point).replaceAll("\n", ", "));
    element.setAttribute("role", "button");
    element.setAttribute("tabindex", place ? -1 : 0);
    element.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) {
        const next = marks[(place + step + marks.length) % marks.length];
        element.setAttribute("tabindex", -1);
        next.setAttribute("tabindex", 0);
        next.focus();
      } else if (event.key === "Enter" || event.key === " ") pick(point.run);
      else return;
      event.preventDefault();
    });
  });
}

function mark() {
  const row = picked && rowOf(picked);
  for (const other of rows) {
    other.classList.toggle("picked", other === row);
    find("th button", other)?.setAttribute("aria-pressed", other === row);
  }
  for (const element of all("#plot [data-run]")) {
    const { run } = element.dataset;
    element.classList.toggle("one", run === picked);
    element.classList.toggle("same", Boolean(row) && run !== picked && runsOf(row).includes(run));
    element.setAttribute("aria-pressed", run === picked);
  }
}

function pick(run) {
  picked = run;
  mark();
  const point = data.points.find((one) => one.run === run);
  const go = (text, target) => {
    const button = make("button", { type: "button", textContent: text });
    button.addEventListener("click", () => target.scrollIntoView({ block: "center" }));
    return button;
  };
  find("#picked").replaceChildren(
    make("span", {}, make("b", {}, run), point ? `: ${describe(point).split("\n").slice(0, 3).join(", ")}` : ""),
    recordLink(run, "Open its record"), go("Its row", rowOf(run)), go("In the chart", find("#plot")),
    copyButton(`make rerun RUN=${study}/${run}`));
}

find("#all").hidden = !above.length;
find("#all span").textContent = `Show the ${above.length} run${above.length > 1 ? "s" : ""} above twice the lowest perplexity too`;
find("#all input").addEventListener("change", draw);
new ResizeObserver(([box]) => {
  if (box.contentRect.width !== Number(find("#plot").dataset.width)) {
    find("#plot").dataset.width = box.contentRect.width;
    draw();
  }
}).observe(find("#plot"));

// ---- the slider: one sparsity, two models

const models = Object.keys(data.views);
const levels = [0, ...new Set(models.flatMap((name) => Object.keys(data.views[name]).map(Number)))].sort((a, b) => a - b);
const slider = find("#level");
const sides = [find("#left"), find("#right")];
const nats = (loss) => loss.toFixed(2);

function shade(difference) {
  const size = Math.abs(difference);
  const alpha = size < 0.5 ? 0 : size < 1 ? 0.12 : size < 2 ? 0.26 : size < 4 ? 0.45 : 0.7;
  return alpha && `rgba(var(--${difference > 0 ? "worse" : "better"}), ${alpha})`;
}

/** A part of a model, or why it is not there. */
const part = (view, name, content, method) => make("div", {}, make("h4", {}, name), ...(view ? content(view) : [missing(method)]));
const missing = (method) => `No run there: this one has ${Object.keys(data.views[method]).map((level) => `${level} %`).join(", ")}.`;

function written(view) {
  return Object.entries(view.written).map(([prompt, text]) =>
    make("p", {}, make("b", {}, prompt), ` ${text.replace(/\s+/g, " ").trim()}`));
}

function passage(view) {
  const base = data.reference?.read ?? [];
  const same = base.length === view.read.length && base.every(([text], place) => text === view.read[place][0]);
  const differences = view.read.map(([, loss], place) => (same ? loss - base[place][1] : 0));
  const mean = (read) => read.reduce((sum, [, loss]) => sum + loss, 0) / read.length;
  const change = mean(view.read) - (same ? mean(base) : 0);
  const whole = view.loss === null ? Infinity : view.loss - (data.reference?.loss ?? 0);
  const worse = differences.filter((each) => each >= 1).length;
  const better = differences.filter((each) => each <= -1).length;
  const summary = !same ? "It splits the text otherwise than the dense model: no difference is shown."
    : view === data.reference ? "The dense model itself: no difference."
    : `${nats(Math.abs(change))} ${change < 0 ? "less" : "more"} than the dense model; ${worse} of ${view.read.length} tokens at least 1 nat worse, ${better} better. Over the whole text ${Number.isFinite(whole) ? nats(Math.abs(whole)) : "infinitely many"} ${whole < 0 ? "less" : "more"}.`;
  const tokens = view.read.map(([text, loss], place) => {
    const token = make("span", { title: `${nats(loss)} nats, ${differences[place] < 0 ? "" : "+"}${nats(differences[place])}` }, text);
    token.style.background = shade(differences[place]) || "none";
    return token;
  });
  while (tokens.length && !tokens[0].textContent.trim()) tokens.shift();
  return [make("p", {}, `${nats(mean(view.read))} nats a token. ${summary}`), make("div", { className: "passage" }, ...tokens)];
}

function heat(view) {
  if (view === data.reference && !view.matrices) return ["Every weight is there."];
  if (!view.matrices) return ["Its record does not say how many zeros each matrix has."];
  const cells = {};
  for (const [name, share] of Object.entries(view.matrices)) {
    const [, block, kind] = name.match(/(?:^|\.)(\d+)\.(.+?)(?:\.weight)?$/) ?? [null, 0, name];
    (cells[block] ??= {})[kind] = share;
  }
  const kinds = [...new Set(Object.values(cells).flatMap(Object.keys))];
  const table = make("table", { className: "heat" });
  table.append(make("tr", {}, make("td", {}), ...kinds.map((kind) => make("th", { scope: "col" }, kind.replaceAll(".", ".\u200b")))));
  for (const block of Object.keys(cells).sort((a, b) => a - b)) {
    table.append(make("tr", {}, make("th", { scope: "row" }, `block ${block}`), ...kinds.map((kind) => {
      const share = cells[block][kind];
      const cell = make("td", {}, share === undefined ? "" : share.toFixed(share < 99.95 && share > 0 ? 1 : 0));
      cell.style.background = `color-mix(in srgb, rgb(var(--better)) ${0.55 * (share ?? 0)}%, var(--paper))`;
      return cell;
    })));
  }
  return [table];
}

function mask(view) {
  if (!view.mask) return [];
  const { matrix, shape, image } = view.mask;
  const text = `Kept weights of a corner of ${matrix}, ${shape.join(" x ")}`;
  return [make("img", { className: "mask", src: image, alt: text }), make("p", { className: "from" }, `${text}: each dot is one.`)];
}

function compare() {
  const level = levels[slider.value];
  const name = level ? `${level} %` : "none: dense";
  const views = sides.map((side) => (level ? data.views[side.value][level] : data.reference));
  const names = views.map((view, place) => (level ? `${short(sides[place].value)}, ${level} %` : `${data.reference?.best ? "best dense model" : "dense model"}: ${short(data.reference?.label ?? "")}`));
  find("#level-name").textContent = name;
  slider.setAttribute("aria-valuetext", name);
  const measures = [...new Set(views.flatMap((view) => Object.keys(view?.numbers ?? {})))];
  find("#numbers").replaceChildren(
    make("thead", {}, make("tr", {}, make("td", {}), ...views.map((view, place) => make("th", { scope: "col" }, names[place], " ",
      ...(view ? [recordLink(view.run, `seed ${view.seed}`)] : []))))),
    make("tbody", {}, ...measures.map((measure) => make("tr", {}, make("th", { scope: "row" }, measure),
      ...views.map((view) => make("td", {}, view?.numbers[measure] ?? "-"))))));
  for (const [place, content] of [["#written", written], ["#read", passage], ["#layers", heat]]) {
    find(place).replaceChildren(...views.map((view, at) => part(view, names[at], content, sides[at].value)));
  }
  find("#masks").replaceChildren(...views.map((view) => make("div", {}, ...(view ? mask(view) : []))));
}

const known = models.flatMap((name) => Object.values(data.views[name]));
if (known.length && data.reference) {
  find("#compare").hidden = false;
  const taught = models.find((name) => name.endsWith(" + teacher")) ?? models[0];
  const same = taught.replace(" + teacher", "");  // but for the teacher
  const untaught = models.includes(same) && same !== taught ? same : models.find((name) => name !== taught) ?? taught;
  sides.forEach((side, place) => {
    side.append(...models.map((name) => make("option", { value: name, textContent: short(name) })));
    side.value = place ? untaught : taught;
    side.addEventListener("change", compare);
  });
  slider.max = levels.length - 1;
  const first = Object.keys(data.views[taught]).map(Number).filter((level) => level <= 90);
  slider.value = levels.indexOf(first.length ? Math.max(...first) : levels[1]);
  find("#levels").append(...levels.map((level, place) => {
    const tick = make("span", {}, level ? `${level} %` : "dense");
    tick.addEventListener("click", () => {
      slider.value = place;
      compare();
    });
    return tick;
  }));
  slider.addEventListener("input", compare);
  const lines = [
    !known.some((view) => Object.keys(view.numbers).some((name) => name.startsWith("KL"))) &&
      "Fidelity to the dense model, token by token, is absent: these records were written before it was measured.",
    !known.some((view) => view.mask) &&
      "No picture of a mask: it is drawn from a run's checkpoint, and this page was made without those.",
  ];
  find("#absent").textContent = lines.filter(Boolean).join(" ");
  compare();
} else all('a[href="#compare"]').forEach((link) => link.remove());

follow();
