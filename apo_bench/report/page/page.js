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
  return String(text).replace(HIDDEN, (one) => {
    const code = one.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

function make(tag, look, ...inside) {
  const made = document.createElement(tag);
  if (look) made.className = look;
  for (const one of inside) {
    if (one instanceof Node) made.append(one);
    else if (one !== null && one !== undefined) made.append(document.createTextNode(visible(one)));
  }
  return made;
}

// Text from the run, whose direction stays its own.
const own = (text) => make("bdi", "", text);
const number = (value) => (value === null ? "\u2013" : (Math.abs(value) < 100 ? value.toFixed(3) : value.toFixed(1)).replace("-", "\u2212"));
const signed = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(1)}`;
const distinct = (values) => [...new Set(values)].sort((a, b) => a - b);

async function unpack(block) {
  const bytes = Uint8Array.from(atob(block.textContent), (one) => one.charCodeAt(0));
  block.remove();
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// Rows by prompt, and comparisons by prompt: both orders of one judge's verdict on two responses together.
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
  return { rows, compared: compared.map((one) => [...one.values()]) };
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
  let found = []; // the prompts that pass, in order
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
    if (wanted && !lowered) lowered = texts.map((one) => visible(one).toLowerCase());
    const hit = wanted ? lowered.map((one) => one.includes(wanted)) : null;
    const passed = [];
    prompts.id.forEach((id, prompt) => {
      if (state.axis !== "" && axes[prompts.axis[prompt]] !== state.axis) return;
      const shown = chosen(prompt);
      const both = judged(prompt);
      if (hit) {
        const words = [...prompts.turns[prompt].map(([, text]) => text), ...shown.map((row) => responses.text[row]), ...both.flat().map((row) => verdicts.said[row])];
        if (!words.some((text) => text !== null && hit[text]) && !id.toLowerCase().includes(wanted)) return;
      }
      const gaps = shown.map((row) => responses.gap[row]).filter((one) => one !== null);
      const gap = gaps.length ? gaps.reduce((a, b) => (state.show === "proxy" ? Math.max(a, b) : state.show === "gold" ? Math.min(a, b) : Math.abs(b) > Math.abs(a) ? b : a)) : null;
      const contradictions = both.filter(contradicts).length;
      if (state.show === "proxy" && !(gap > 0)) return;
      if (state.show === "gold" && !(gap < 0)) return;
      if (state.show === "judge" && !contradictions) return;
      passed.push({ prompt, gap, contradictions });
    });
    const order = { proxy: (a, b) => b.gap - a.gap, gold: (a, b) => a.gap - b.gap, judge: (a, b) => b.contradictions - a.contradictions };
    found = order[state.show] ? passed.sort(order[state.show]) : passed;
  }

  // Controls.
  const search = make("input");
  search.type = "search";
  search.id = "browse-search";
  const axis = select("browse-axis", [["", "all axes"], ...axes.map((one) => [one, one])]);
  const show = select("browse-show", Object.entries(SHOW));
  const count = make("p", "small");
  count.setAttribute("role", "status");
  const boxes = {
    arms: chips("Arms", [...arms.entries()]),
    rounds: chips("Rounds", rounds.map((one) => [one, one])),
    seeds: chips("Seeds", seeds.map((one) => [one, one])),
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
    const made = make("select");
    made.id = id;
    for (const [key, text] of options) {
      const option = make("option", "", text);
      option.value = key;
      made.append(option);
    }
    return made;
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
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    inner.style.height = `${found.length * ROW}px`;
    inner.replaceChildren();
    for (let place = first; place < last; place++) {
      const { prompt, gap, contradictions } = found[place];
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
      row.setAttribute("aria-setsize", String(found.length));
      row.setAttribute("aria-posinset", String(place + 1));
      row.addEventListener("click", () => choose(prompt));
      inner.append(row);
    }
    const place = found.findIndex((one) => one.prompt === state.prompt);
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
      const said = make("div", "turn", make("span", "role", own(role)), words(texts[text]));
      detail.append(said);
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
    const made = make("div", "words", text);
    made.dir = "auto";
    return made;
  }

  function card(row) {
    const made = make("section", `card c${responses.arm[row] % 7}`, make("h5", "", own(arms[responses.arm[row]])), words(texts[responses.text[row]]));
    if (texts[responses.text[row]] === "") made.querySelector(".words").replaceWith(make("p", "small", "(empty)"));
    const facts = make("dl", "");
    scorers.forEach((scorer, place) => facts.append(make("div", "", make("dt", "", own(scorer.replace("_", " "))), make("dd", "", number(responses.scores[place][row])))));
    facts.append(make("div", "", make("dt", "", "tokens"), make("dd", "", String(responses.tokens[row] ?? "\u2013"), responses.cut[row] ? ", cut off" : "")));
    made.append(facts);
    const gap = responses.gap[row];
    if (gap !== null && Math.abs(gap) >= 1.5) made.append(make("p", "flag", `Proxy ranks it ${Math.abs(gap).toFixed(1)} SD ${gap > 0 ? "above" : "below"} gold`));
    return made;
  }

  function verdict(both) {
    const [row] = both;
    const side = (arm, place) => make("span", "", own(arms[arm]), ` (round ${verdicts.rounds[row][place]}, seed ${verdicts.seeds[row][place]})`);
    const title = make("p", "pair", own(verdicts.judges[verdicts.judge[row]]), ": ", side(verdicts.a[row], 0), " against ", side(verdicts.b[row], 1));
    if (contradicts(both)) title.append(make("span", "flag", "the two orders disagree"));
    const lines = both.map((one) => {
      const shown = verdicts.order[one] ? [verdicts.b[one], verdicts.a[one]] : [verdicts.a[one], verdicts.b[one]];
      const choice = verdicts.choice[one];
      const line = make("li", "", own(arms[shown[0]]), " shown first: ");
      if (choice === null) line.append(make("em", "", "no verdict"), verdicts.failure[one] === null ? "" : " (", own(verdicts.failure[one] === null ? "" : texts[verdicts.failure[one]]), verdicts.failure[one] === null ? "" : ")");
      else if (choice === 1) line.append(make("b", "", "a tie"));
      else line.append(make("b", "", own(arms[shown[choice / 2]])), ` is better (${CHOICES[choice]})`);
      if (verdicts.said[one] !== null) line.append(make("blockquote", "", words(texts[verdicts.said[one]])));
      return line;
    });
    return make("section", "verdict", title, make("ul", "", ...lines));
  }

  // State, its controls and its link.
  function refresh(keep) {
    filter();
    if (!keep && !found.some((one) => one.prompt === state.prompt)) state.prompt = found.length ? found[0].prompt : null;
    search.value = state.q;
    axis.value = state.axis;
    show.value = state.show;
    for (const [name, set] of Object.entries(boxes)) for (const box of set.querySelectorAll("input")) box.checked = state[name].has(Number(box.value));
    count.textContent = `${found.length} of ${prompts.id.length} prompts`;
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
    const place = found.findIndex((one) => one.prompt === state.prompt);
    if (place < 0) return;
    if (place * ROW < list.scrollTop) list.scrollTop = place * ROW;
    if ((place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW - list.clientHeight;
  }

  function link() {
    const plain = defaults();
    const said = new URLSearchParams();
    if (state.prompt !== null) said.set("prompt", prompts.id[state.prompt]);
    const same = (name) => state[name].size === plain[name].size && [...state[name]].every((one) => plain[name].has(one));
    if (!same("arms")) said.set("arms", [...state.arms].sort((a, b) => a - b).map((one) => arms[one]).join(","));
    for (const name of ["rounds", "seeds"]) if (!same(name)) said.set(name, distinct(state[name]).join(","));
    for (const name of ["axis", "show", "q"]) if (state[name] !== plain[name]) said.set(name, state[name]);
    history.replaceState(null, "", `#browse?${said}`);
  }

  // Names in a link that the run does not have are passed over.
  function follow() {
    if (!location.hash.startsWith("#browse?")) return false;
    const said = new URLSearchParams(location.hash.slice("#browse?".length));
    state = defaults();
    const listed = (name) => said.get(name).split(",").filter((one) => one !== "");
    if (said.has("arms")) state.arms = new Set(listed("arms").map((one) => arms.indexOf(one)).filter((one) => one >= 0));
    if (said.has("rounds")) state.rounds = new Set(listed("rounds").map(Number).filter((one) => rounds.includes(one)));
    if (said.has("seeds")) state.seeds = new Set(listed("seeds").map(Number).filter((one) => seeds.includes(one)));
    if (axes.includes(said.get("axis"))) state.axis = said.get("axis");
    if (Object.hasOwn(SHOW, said.get("show") ?? "")) state.show = said.get("show");
    state.q = said.get("q") ?? "";
    const place = prompts.id.indexOf(said.get("prompt"));
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
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -found.length, End: found.length };
    if (!(event.key in steps) || !found.length) return;
    event.preventDefault();
    const place = found.findIndex((one) => one.prompt === state.prompt);
    choose(found[Math.min(found.length - 1, Math.max(0, place + steps[event.key]))].prompt);
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
