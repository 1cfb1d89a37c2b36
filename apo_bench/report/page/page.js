// The sample browser. Everything from the run is put on the page as text, by textContent alone.
"use strict";

const HIDDEN = /[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff\u{e0000}-\u{e007f}]/gu;
const ROW = 62; // height of a row of the list, in px; also in the style
const SHOW = {
  all: "all prompts",
  proxy: "proxy far above gold, largest first",
  gold: "gold far above proxy, largest first",
  judge: "judge contradicts itself",
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

function make(tag, look, ...inside) {
  const element = document.createElement(tag);
  if (look) element.className = look;
  for (const child of inside) {
    if (child instanceof Node) element.append(child);
    else if (child !== null && child !== undefined) element.append(document.createTextNode(visible(child)));
  }
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

// Rows by prompt, and comparisons by prompt: both orders of a judge's verdict on two responses together.
function index(data) {
  const { responses, verdicts, prompts } = data;
  const rows = prompts.id.map(() => []);
  responses.prompt.forEach((prompt, row) => rows[prompt].push(row));
  const compared = prompts.id.map(() => new Map());
  verdicts.prompt.forEach((prompt, row) => {
    const key = JSON.stringify([verdicts.judge[row], verdicts.a[row], verdicts.b[row], verdicts.seeds[row], verdicts.rounds[row]]);
    if (!compared[prompt].has(key)) compared[prompt].set(key, []);
    compared[prompt].get(key).push(row);
  });
  return { rows, compared: compared.map((item) => [...item.values()]) };
}

function browser(data) {
  const { arms, axes, scorers, prompts, responses, verdicts, texts } = data;
  const { rows, compared } = index(data);
  const rounds = distinct(responses.round);
  const seeds = distinct(responses.seed);
  const defaults = () => ({
    prompt: null, arms: new Set(arms.keys()), rounds: new Set(rounds.slice(-1)), seeds: new Set(seeds.slice(0, 1)), axis: "", show: "all", q: "",
  });
  let state = defaults();
  let passing = []; // the prompts that pass, in order
  let lowered = null;

  // What of a prompt is chosen.
  const chosen = (prompt) =>
    rows[prompt].filter((row) => state.arms.has(responses.arm[row]) && state.rounds.has(responses.round[row]) && state.seeds.has(responses.seed[row]));
  const judged = (prompt) =>
    compared[prompt].filter(([row]) => [verdicts.a[row], verdicts.b[row]].every((arm) => state.arms.has(arm)) && verdicts.seeds[row].every((seed) => state.seeds.has(seed)));
  const value = (row) => (verdicts.choice[row] === null ? null : verdicts.order[row] ? verdicts.choice[row] : 2 - verdicts.choice[row]);
  const contradicts = (both) => both.length === 2 && both.every((row) => value(row) !== null) && value(both[0]) !== value(both[1]);

  function filter() {
    const wanted = visible(state.q).trim().toLowerCase();
    if (wanted && !lowered) lowered = texts.map((item) => visible(item).toLowerCase());
    const hit = wanted ? lowered.map((item) => item.includes(wanted)) : null;
    const passed = [];
    prompts.id.forEach((id, prompt) => {
      if (state.axis !== "" && axes[prompts.axis[prompt]] !== state.axis) return;
      const shown = chosen(prompt);
      const both = judged(prompt);
      if (hit) {
        const words = [...prompts.turns[prompt].map(([, text]) => text), ...shown.map((row) => responses.text[row]), ...both.flat().map((row) => verdicts.words[row])];
        if (!words.some((text) => text !== null && hit[text]) && !id.toLowerCase().includes(wanted)) return;
      }
      const gaps = shown.map((row) => responses.gap[row]).filter((item) => item !== null);
      const gap = gaps.length ? gaps.reduce((a, b) => (state.show === "proxy" ? Math.max(a, b) : state.show === "gold" ? Math.min(a, b) : Math.abs(b) > Math.abs(a) ? b : a)) : null;
      const contradictions = both.filter(contradicts).length;
      if (state.show === "proxy" && !(gap > 0)) return;
      if (state.show === "gold" && !(gap < 0)) return;
      if (state.show === "judge" && !contradictions) return;
      passed.push({ prompt, gap, contradictions });
    });
    const order = { proxy: (a, b) => b.gap - a.gap, gold: (a, b) => a.gap - b.gap, judge: (a, b) => b.contradictions - a.contradictions };
    passing = order[state.show] ? passed.sort(order[state.show]) : passed;
  }

  // Controls.
  const search = make("input");
  search.type = "search";
  search.id = "browse-search";
  const axis = select("browse-axis", [["", "all axes"], ...axes.map((item) => [item, item])]);
  const show = select("browse-show", Object.entries(SHOW));
  const count = make("p", "small");
  count.setAttribute("role", "status");
  const boxes = {
    arms: chips("Arms", [...arms.entries()]),
    rounds: chips("Rounds", rounds.map((item) => [item, item])),
    seeds: chips("Seeds", seeds.map((item) => [item, item])),
  };
  const list = make("div", "list");
  const inner = make("div", "inner");
  const detail = make("article", "detail");
  list.tabIndex = 0;
  list.id = "browse-list";
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Prompts");
  detail.id = "browse-detail";
  list.append(inner);

  function select(id, options) {
    const menu = make("select");
    menu.id = id;
    for (const [key, text] of options) {
      const option = make("option", "", text);
      option.value = key;
      menu.append(option);
    }
    return menu;
  }

  function labelled(text, control) {
    const label = make("label", "field", make("span", "", text), control);
    label.htmlFor = control.id;
    return label;
  }

  function chips(title, options) {
    const set = make("fieldset", "chips", make("legend", "", title));
    for (const [key, text] of options) {
      const box = make("input");
      box.type = "checkbox";
      box.value = key;
      set.append(make("label", "", box, make("span", "", own(text))));
    }
    return set;
  }

  // The list holds only the rows that can be seen.
  function drawList() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(passing.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    inner.style.height = `${passing.length * ROW}px`;
    inner.replaceChildren();
    for (let place = first; place < last; place++) {
      const { prompt, gap, contradictions } = passing[place];
      const turn = prompts.turns[prompt].at(-1);
      const row = make("div", "item", make("span", "line", own(turn ? texts[turn[1]] : prompts.id[prompt])));
      const about = make("span", "sub", own(axes[prompts.axis[prompt]]));
      if (gap !== null) about.append(`  ·  proxy ${signed(gap)} SD`);
      if (contradictions) about.append("  ·  judge inconsistent");
      row.append(about);
      row.id = `browse-row-${place}`;
      row.style.top = `${place * ROW}px`;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(prompt === state.prompt));
      row.setAttribute("aria-setsize", String(passing.length));
      row.setAttribute("aria-posinset", String(place + 1));
      row.addEventListener("click", () => choose(prompt));
      inner.append(row);
    }
    const place = passing.findIndex((item) => item.prompt === state.prompt);
    if (place >= first && place < last) list.setAttribute("aria-activedescendant", `browse-row-${place}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function drawDetail() {
    detail.replaceChildren();
    if (state.prompt === null) {
      detail.append(make("p", "small", "No prompt passes these filters."));
      return;
    }
    const prompt = state.prompt;
    const turns = prompts.turns[prompt];
    detail.append(make("p", "sub", "Prompt ", make("code", "", own(prompts.id[prompt])), " · axis ", own(axes[prompts.axis[prompt]])));
    if (!turns.length) detail.append(make("p", "small", "Its text is not in this page."));
    for (const [role, text] of turns) {
      detail.append(make("div", "turn", make("span", "role", own(role)), words(texts[text])));
    }
    const shown = chosen(prompt);
    if (!shown.length) detail.append(make("p", "small", "No response of these arms, rounds and seeds."));
    for (const round of rounds) {
      for (const seed of seeds) {
        const cards = shown.filter((row) => responses.round[row] === round && responses.seed[row] === seed);
        if (!cards.length) continue;
        detail.append(make("h4", "", `Round ${round}, seed ${seed}`), make("div", "cards", ...cards.map(card)));
      }
    }
    const both = judged(prompt);
    if (both.length) detail.append(make("h4", "", "Verdicts"), ...both.map(verdict));
  }

  function words(text) {
    const box = make("div", "words", text);
    box.dir = "auto";
    return box;
  }

  function card(row) {
    const section = make("section", `card c${responses.arm[row] % 7}`, make("h5", "", own(arms[responses.arm[row]])), words(texts[responses.text[row]]));
    if (texts[responses.text[row]] === "") section.querySelector(".words").replaceWith(make("p", "small", "(empty)"));
    const facts = make("dl", "");
    scorers.forEach((scorer, place) => facts.append(make("div", "", make("dt", "", own(scorer.replace("_", " "))), make("dd", "", number(responses.scores[place][row])))));
    facts.append(make("div", "", make("dt", "", "tokens"), make("dd", "", String(responses.tokens[row] ?? "\u2013"), responses.cut[row] ? ", cut off" : "")));
    section.append(facts);
    const gap = responses.gap[row];
    if (gap !== null && Math.abs(gap) >= 1.5) section.append(make("p", "flag", `Proxy ranks it ${Math.abs(gap).toFixed(1)} SD ${gap > 0 ? "above" : "below"} gold`));
    return section;
  }

  function verdict(both) {
    const [row] = both;
    const side = (arm, place) => make("span", "", own(arms[arm]), ` (round ${verdicts.rounds[row][place]}, seed ${verdicts.seeds[row][place]})`);
    const title = make("p", "pair", own(verdicts.judges[verdicts.judge[row]]), ": ", side(verdicts.a[row], 0), " against ", side(verdicts.b[row], 1));
    if (contradicts(both)) title.append(make("span", "flag", "the two orders disagree"));
    const lines = both.map((item) => {
      const shown = verdicts.order[item] ? [verdicts.b[item], verdicts.a[item]] : [verdicts.a[item], verdicts.b[item]];
      const choice = verdicts.choice[item];
      const line = make("li", "", own(arms[shown[0]]), " shown first: ");
      if (choice === null) line.append(make("em", "", "no verdict"), verdicts.failure[item] === null ? "" : " (", own(verdicts.failure[item] === null ? "" : texts[verdicts.failure[item]]), verdicts.failure[item] === null ? "" : ")");
      else if (choice === 1) line.append(make("b", "", "a tie"));
      else line.append(make("b", "", own(arms[shown[choice / 2]])), ` is better (${CHOICES[choice]})`);
      if (verdicts.words[item] !== null) line.append(make("blockquote", "", words(texts[verdicts.words[item]])));
      return line;
    });
    return make("section", "verdict", title, make("ul", "", ...lines));
  }

  // State, its controls and its link.
  function refresh(keep) {
    filter();
    if (!keep && !passing.some((item) => item.prompt === state.prompt)) state.prompt = passing.length ? passing[0].prompt : null;
    search.value = state.q;
    axis.value = state.axis;
    show.value = state.show;
    for (const [name, set] of Object.entries(boxes)) for (const box of set.querySelectorAll("input")) box.checked = state[name].has(Number(box.value));
    count.textContent = `${passing.length} of ${prompts.id.length} prompts`;
    drawList();
    drawDetail();
  }

  function choose(prompt) {
    state.prompt = prompt;
    reveal();
    drawList();
    drawDetail();
    link();
  }

  function reveal() {
    const place = passing.findIndex((item) => item.prompt === state.prompt);
    if (place < 0) return;
    if (place * ROW < list.scrollTop) list.scrollTop = place * ROW;
    if ((place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW - list.clientHeight;
  }

  function link() {
    const plain = defaults();
    const query = new URLSearchParams();
    if (state.prompt !== null) query.set("prompt", prompts.id[state.prompt]);
    const same = (name) => state[name].size === plain[name].size && [...state[name]].every((item) => plain[name].has(item));
    if (!same("arms")) query.set("arms", [...state.arms].sort((a, b) => a - b).map((item) => arms[item]).join(","));
    for (const name of ["rounds", "seeds"]) if (!same(name)) query.set(name, distinct(state[name]).join(","));
    for (const name of ["axis", "show", "q"]) if (state[name] !== plain[name]) query.set(name, state[name]);
    history.replaceState(null, "", `#browse?${query}`);
  }

  // Names in a link that the run does not have are passed over.
  function follow() {
    if (!location.hash.startsWith("#browse?")) return false;
    const query = new URLSearchParams(location.hash.slice("#browse?".length));
    state = defaults();
    const listed = (name) => query.get(name).split(",").filter((item) => item !== "");
    if (query.has("arms")) state.arms = new Set(listed("arms").map((item) => arms.indexOf(item)).filter((item) => item >= 0));
    if (query.has("rounds")) state.rounds = new Set(listed("rounds").map(Number).filter((item) => rounds.includes(item)));
    if (query.has("seeds")) state.seeds = new Set(listed("seeds").map(Number).filter((item) => seeds.includes(item)));
    if (axes.includes(query.get("axis"))) state.axis = query.get("axis");
    if (Object.hasOwn(SHOW, query.get("show") ?? "")) state.show = query.get("show");
    state.q = query.get("q") ?? "";
    const place = prompts.id.indexOf(query.get("prompt"));
    state.prompt = place < 0 ? null : place;
    refresh(place >= 0);
    reveal();
    drawList();
    document.getElementById("samples").scrollIntoView();
    return true;
  }

  function changed() {
    list.scrollTop = 0;
    refresh(false);
    link();
  }

  search.addEventListener("input", () => { state.q = search.value; changed(); });
  axis.addEventListener("change", () => { state.axis = axis.value; changed(); });
  show.addEventListener("change", () => { state.show = show.value; changed(); });
  for (const [name, set] of Object.entries(boxes))
    set.addEventListener("change", (event) => {
      const key = Number(event.target.value);
      if (event.target.checked) state[name].add(key);
      else state[name].delete(key);
      const top = list.scrollTop;
      changed();
      list.scrollTop = top;
    });
  let waiting = false;
  list.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawList(); });
  });
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -passing.length, End: passing.length };
    if (!(event.key in steps) || !passing.length) return;
    event.preventDefault();
    const place = passing.findIndex((item) => item.prompt === state.prompt);
    choose(passing[Math.min(passing.length - 1, Math.max(0, place + steps[event.key]))].prompt);
  });
  addEventListener("hashchange", follow);
  addEventListener("resize", drawList);

  const filters = make("div", "filters", labelled("Search", search), labelled("Axis", axis), labelled("Show", show));
  document.getElementById("browser").append(filters, make("div", "filters", ...Object.values(boxes)), count, make("div", "split", list, detail));
  if (!follow()) refresh(false);
}

unpack(document.getElementById("data")).then(
  (data) => {
    document.getElementById("browser-state").remove();
    browser(data);
  },
  (error) => { document.getElementById("browser-state").textContent = `The samples could not be read: ${error.message}`; },
);
