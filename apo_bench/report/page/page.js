// The sample browser. Everything from the run is put on the page as text, by textContent alone.
"use strict";

const HIDDEN = /[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff\u{e0000}-\u{e007f}]/gu;
const ROW = 62; // height of a row of the list, in px; also in the style
const SHOW = {
  all: { title: "all prompts", passes: () => true, order: () => 0 },
  proxy: { title: "proxy far above gold, largest first", passes: (item) => item.gap > 0, order: (a, b) => b.gap - a.gap },
  gold: { title: "gold far above proxy, largest first", passes: (item) => item.gap < 0, order: (a, b) => a.gap - b.gap },
  judge: { title: "judge contradicts itself", passes: (item) => item.contradictions, order: (a, b) => b.contradictions - a.contradictions },
};
const CHOICES = ["the response shown first", "a tie", "the response shown second"];

// As the page's python does: control pictures for ASCII's control characters, code points for others.
function visible(text) {
  return String(text).replace(HIDDEN, (item) => {
    const code = item.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

// An element with a class, or with several properties; what is no element becomes text.
function make(tag, look, ...inside) {
  const element = Object.assign(document.createElement(tag), typeof look === "string" ? { className: look } : look);
  element.append(...inside.map((child) => (child instanceof Node ? child : visible(child))));
  return element;
}

// Text from the run, whose direction stays its own.
const own = (text) => make("bdi", "", text);
const number = (value) => (value === null ? "\u2013" : (Math.abs(value) < 100 ? value.toFixed(3) : value.toFixed(1)).replace("-", "\u2212"));
const signed = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(1)}`;
const distinct = (values) => [...new Set(values)].sort((a, b) => a - b);

async function unpack(block) {
  const bytes = Uint8Array.from(atob(block.textContent), (item) => item.charCodeAt(0));
  block.remove();
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

function browser({ arms, axes, scorers, prompts, responses, verdicts, texts, labels = [] }) {
  const display = new Map(labels); // names of the report for those of the experiment
  const label = (name) => own(display.get(name) ?? name);
  const rounds = distinct(responses.round);
  const seeds = distinct(responses.seed);
  let passing = []; // the prompts that pass the filters, in order
  let current = null; // the prompt that is shown
  let lowered = null;

  // Rows by prompt, and comparisons by prompt: both orders of a judge's verdict on two responses together.
  const rowsOf = Map.groupBy(responses.prompt.keys(), (row) => responses.prompt[row]);
  const verdictsOf = Map.groupBy(verdicts.prompt.keys(), (row) => verdicts.prompt[row]);
  const comparison = (row) => JSON.stringify(["judge", "a", "b", "seeds", "rounds"].map((name) => verdicts[name][row]));
  const compared = prompts.id.map((_, prompt) => [...Map.groupBy(verdictsOf.get(prompt) ?? [], comparison).values()]);

  // Controls, which hold the state of the filters.
  const search = make("input", { type: "search", id: "browse-search", name: "q" });
  const axis = select("axis", [["", "all axes"], ...axes.map((item) => [item, item])]);
  const show = select("show", Object.entries(SHOW).map(([key, { title }]) => [key, title]));
  const boxes = { arms: chips("arms", arms, arms), rounds: chips("rounds", rounds, rounds.slice(-1)), seeds: chips("seeds", seeds, seeds.slice(0, 1)) };
  const form = make(
    "form", "",
    make("div", "filters", labelled("Search", search), labelled("Axis", axis), labelled("Show", show)),
    make("div", "filters", ...Object.entries(boxes).map(([name, labels]) => make("fieldset", "chips", make("legend", "", name), ...labels))),
  );
  const count = make("p", { className: "small", role: "status" });
  const inner = make("div", "inner");
  const list = make("div", { className: "list", id: "browse-list", tabIndex: 0, role: "listbox", ariaLabel: "Prompts" }, inner);
  const detail = make("article", { className: "detail", id: "browse-detail", tabIndex: -1, ariaLabel: "The chosen prompt and its answers" });
  const copied = make("span", { className: "small", role: "status" });
  const copy = make("button", { type: "button", id: "browse-link" }, "Copy a link to this view");

  function select(name, options) {
    return make("select", { id: `browse-${name}`, name }, ...options.map(([value, text]) => make("option", { value }, text)));
  }

  function labelled(text, control) {
    return make("label", { className: "field", htmlFor: control.id }, make("span", "", text), control);
  }

  function chips(name, values, usual) {
    const box = (value) => make("input", { type: "checkbox", name, value, defaultChecked: usual.includes(value) });
    return values.map((value) => make("label", "", box(value), make("span", "", label(value))));
  }

  const inputs = (name) => boxes[name].map((label) => label.control);
  const checked = (name) => inputs(name).filter((box) => box.checked).map((box) => box.value);

  // What of a prompt is chosen.
  let picked = {};
  const chosen = (prompt) =>
    (rowsOf.get(prompt) ?? []).filter((row) => picked.arms.has(arms[responses.arm[row]]) && picked.rounds.has(String(responses.round[row])) && picked.seeds.has(String(responses.seed[row])));
  const judged = (prompt) =>
    compared[prompt].filter(([row]) => [verdicts.a[row], verdicts.b[row]].every((arm) => picked.arms.has(arms[arm])) && verdicts.seeds[row].every((seed) => picked.seeds.has(String(seed))));
  const value = (row) => (verdicts.choice[row] === null ? null : verdicts.order[row] ? verdicts.choice[row] : 2 - verdicts.choice[row]);
  const contradicts = (both) => both.length === 2 && both.every((row) => value(row) !== null) && value(both[0]) !== value(both[1]);

  function filter() {
    picked = Object.fromEntries(Object.keys(boxes).map((name) => [name, new Set(checked(name))]));
    const wanted = visible(search.value).trim().toLowerCase();
    if (wanted && !lowered) lowered = texts.map((item) => visible(item).toLowerCase());
    const hit = wanted ? lowered.map((item) => item.includes(wanted)) : null;
    const larger = { proxy: Math.max, gold: Math.min }[show.value] ?? ((a, b) => (Math.abs(b) > Math.abs(a) ? b : a));
    const passed = [];
    prompts.id.forEach((id, prompt) => {
      if (axis.value !== "" && axes[prompts.axis[prompt]] !== axis.value) return;
      const shown = chosen(prompt);
      const both = judged(prompt);
      if (hit) {
        const words = [...prompts.turns[prompt].map(([, text]) => text), ...shown.map((row) => responses.text[row]), ...both.flat().map((row) => verdicts.words[row])];
        if (!words.some((text) => text !== null && hit[text]) && !id.toLowerCase().includes(wanted)) return;
      }
      const gaps = shown.map((row) => responses.gap[row]).filter((item) => item !== null);
      passed.push({ prompt, gap: gaps.length ? gaps.reduce((a, b) => larger(a, b)) : null, contradictions: both.filter(contradicts).length });
    });
    passing = passed.filter(SHOW[show.value].passes).sort(SHOW[show.value].order);
  }

  // The list holds only the rows that can be seen.
  function drawList() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(passing.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    inner.style.height = `${passing.length * ROW}px`;
    inner.style.paddingTop = `${first * ROW}px`;
    const rows = passing.slice(first, last).map(({ prompt, gap, contradictions }, place) => {
      const turn = prompts.turns[prompt].at(-1);
      const about = make("span", "sub", own(axes[prompts.axis[prompt]]), gap === null ? "" : `  ·  proxy ${signed(gap)} SD`, contradictions ? "  ·  judge inconsistent" : "");
      const position = { ariaSelected: prompt === current, ariaSetSize: passing.length, ariaPosInSet: first + place + 1 };
      const look = { className: "item", id: `browse-row-${first + place}`, role: "option", onclick: () => choose(prompt), ...position };
      return make("div", look, make("span", "line", own(turn ? texts[turn[1]] : prompts.id[prompt])), about);
    });
    inner.replaceChildren(...rows);
    list.setAttribute("aria-activedescendant", inner.querySelector("[aria-selected=true]")?.id ?? "");
  }

  function drawDetail() {
    if (current === null) return detail.replaceChildren(make("p", "small", "No prompt passes these filters."));
    const turns = prompts.turns[current];
    detail.replaceChildren(make("p", "sub", "Prompt ", make("code", "", own(prompts.id[current])), " · axis ", own(axes[prompts.axis[current]])));
    if (!turns.length) detail.append(make("p", "small", "Its text is not in this page."));
    detail.append(...turns.map(([role, text]) => make("div", "turn", make("span", "role", own(role)), words(text))));
    const shown = chosen(current);
    if (!shown.length) detail.append(make("p", "small", "No response of these arms, rounds and seeds."));
    for (const round of rounds) {
      for (const seed of seeds) {
        const cards = shown.filter((row) => responses.round[row] === round && responses.seed[row] === seed);
        if (cards.length) detail.append(make("h4", "", `Round ${round}, seed ${seed}`), make("div", "cards", ...cards.map(card)));
      }
    }
    const both = judged(current);
    if (both.length) detail.append(make("h4", "", "Verdicts"), make("div", "verdicts", ...both.map(verdict)));
  }

  const words = (text) => make("div", { className: "words", dir: "auto" }, texts[text]);

  function card(row) {
    const fact = (term, ...known) => make("div", "", make("dt", "", term), make("dd", "", ...known));
    const facts = scorers.map((scorer, place) => fact(display.has(scorer) ? label(scorer) : own(scorer.replace("_", " ")), number(responses.scores[place][row])));
    facts.push(fact("tokens", responses.tokens[row] ?? "\u2013", responses.cut[row] ? ", cut off" : ""));
    const text = texts[responses.text[row]] === "" ? make("p", "small", "(empty)") : words(responses.text[row]);
    const section = make("section", `card c${responses.arm[row] % 7}`, make("h5", "", label(arms[responses.arm[row]])), text, make("dl", "", ...facts));
    const gap = responses.gap[row];
    if (gap !== null && Math.abs(gap) >= 1.5) section.append(make("p", "flag", `Proxy ranks it ${Math.abs(gap).toFixed(1)} SD ${gap > 0 ? "above" : "below"} gold`));
    return section;
  }

  function verdict(both) {
    const [row] = both;
    const side = (arm, place) => make("span", "", label(arms[arm]), ` (round ${verdicts.rounds[row][place]}, seed ${verdicts.seeds[row][place]})`);
    const title = make("p", "pair", label(verdicts.judges[verdicts.judge[row]]), ": ", side(verdicts.a[row], 0), " against ", side(verdicts.b[row], 1));
    if (contradicts(both)) title.append(make("span", "flag", "the two orders disagree"));
    const lines = both.map((item) => {
      const shown = verdicts.order[item] ? [verdicts.b[item], verdicts.a[item]] : [verdicts.a[item], verdicts.b[item]];
      const choice = verdicts.choice[item];
      const failure = verdicts.failure[item];
      const line = make("li", "", label(arms[shown[0]]), " shown first: ");
      if (choice === null) line.append(make("em", "", "no verdict"), ...(failure === null ? [] : [" (", own(texts[failure]), ")"]));
      else if (choice === 1) line.append(make("b", "", "a tie"));
      else line.append(make("b", "", label(arms[shown[choice / 2]])), ` is better (${CHOICES[choice]})`);
      if (verdicts.words[item] !== null) line.append(make("blockquote", "", words(verdicts.words[item])));
      return line;
    });
    return make("section", "verdict", title, make("ul", "", ...lines));
  }

  // What the controls say is shown; a prompt in a link is shown even where it does not pass.
  function refresh(keep) {
    filter();
    if (!keep && !passing.some((item) => item.prompt === current)) current = passing[0]?.prompt ?? null;
    count.textContent = `${passing.length} of ${prompts.id.length} prompts`;
    drawList();
    drawDetail();
  }

  function choose(prompt) {
    current = prompt;
    reveal();
    drawDetail();
    link();
  }

  function reveal() {
    const place = passing.findIndex((item) => item.prompt === current);
    if (place >= 0) list.scrollTop = Math.min(place * ROW, Math.max(list.scrollTop, (place + 1) * ROW - list.clientHeight));
    drawList();
  }

  function link() {
    const shown = { prompt: current === null ? null : prompts.id[current] };
    for (const name in boxes) shown[name] = inputs(name).some((box) => box.checked !== box.defaultChecked) ? checked(name).join(",") : null;
    for (const [control, usual] of [[axis, ""], [show, "all"], [search, ""]]) shown[control.name] = control.value === usual ? null : control.value;
    remember("browse", shown);
  }

  // Names in a link that the run does not have are passed over.
  function follow() {
    const [part, query] = view();
    if (part !== "browse") return false;
    form.reset();
    for (const name in boxes) if (query.has(name)) for (const box of inputs(name)) box.checked = query.get(name).split(",").includes(box.value);
    for (const menu of [axis, show]) for (const option of menu.options) if (option.value === query.get(menu.name)) menu.value = option.value;
    search.value = query.get("q") ?? "";
    const place = prompts.id.indexOf(query.get("prompt"));
    current = place < 0 ? null : place;
    refresh(place >= 0);
    reveal();
    document.getElementById("samples").scrollIntoView();
    return true;
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.type !== "checkbox") list.scrollTop = 0;
    refresh(false);
    link();
  });
  list.addEventListener("scroll", drawList);
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -passing.length, End: passing.length };
    if (!(event.key in steps) || !passing.length) return;
    event.preventDefault();
    const place = passing.findIndex((item) => item.prompt === current);
    choose(passing[Math.min(passing.length - 1, Math.max(0, place + steps[event.key]))].prompt);
  });
  list.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && current !== null) detail.focus();
  });
  detail.addEventListener("keydown", (event) => {
    if (event.key === "Escape") list.focus();
  });
  copy.addEventListener("click", () => {
    link();
    copyText(location.href).then(() => { copied.textContent = "Copied."; }, (error) => { copied.textContent = `Not copied: ${error.message}.`; });
  });
  addEventListener("hashchange", follow);
  addEventListener("resize", drawList);

  document.getElementById("browser").append(form, make("div", "counted", count, make("div", "copy", copy, copied)), make("div", "split", list, detail));
  if (!follow()) refresh(false);
}

unpack(document.getElementById("data")).then(
  (data) => {
    document.getElementById("browser-state").remove();
    browser(data);
  },
  (error) => { document.getElementById("browser-state").textContent = `The samples could not be read: ${error.message}`; },
);
