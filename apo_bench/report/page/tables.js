// Every table can be copied as CSV, Markdown or LaTeX: its text as it is shown, without what only screen readers hear. What is open stands
// in the address, so that a link opens the same view.
"use strict";

const TEX = {
  "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "%": "\\%", "#": "\\#", "_": "\\_", "^": "\\textasciicircum{}",
  "~": "\\textasciitilde{}", "<": "\\textless{}", ">": "\\textgreater{}", "±": "$\\pm$", "≤": "$\\leq$", "\u2013": "--", "-": "{-}",
  "\u2212": "$-$", "▲": "$\\blacktriangle$", "▽": "$\\triangledown$", "≈": "$\\approx$",
};
const WRITTEN = {
  CSV: (rows) => rows.map((row) => row.map((cell) => csvCell(cell.replaceAll("\u2212", "-"))).join(",")).join("\n"),
  Markdown: ([head, ...rows]) => [head, head.map(() => "---"), ...rows].map((row) => `| ${row.map((cell) => cell.replace(/[\\|`*_<]/g, "\\$&")).join(" | ")} |`).join("\n"),
  LaTeX: ([head, ...rows]) => [
    "% needs \\usepackage{booktabs,amssymb}", `\\begin{tabular}{l${"r".repeat(head.length - 1)}}`, "\\toprule", texRow(head), "\\midrule", ...rows.map(texRow),
    "\\bottomrule", "\\end{tabular}",
  ].join("\n"),
};

// A cell that a spreadsheet would take for a formula is marked as text.
function csvCell(text) {
  const safe = /^[=+@-]/.test(text) && !/^[+-]?[\d.]/.test(text) ? `'${text}` : text;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

const texRow = (row) => `${row.map((cell) => cell.replace(/[\\{}$&%#_^~<>±≤\u2013\u2212▲▽≈-]/g, (item) => TEX[item])).join(" & ")} \\\\`;

function tableText(table, way) {
  const cells = (row) => [...row.cells].filter((cell) => !cell.classList.contains("plot")).map((cell) => {
    const copy = cell.cloneNode(true);
    if (row.parentNode.tagName !== "THEAD") copy.querySelectorAll(".heard").forEach((item) => item.remove());
    copy.querySelectorAll(".sub, .sd").forEach((item) => item.before(" "));
    return copy.textContent.replace(/\s+/g, " ").trim();
  });
  return WRITTEN[way]([...table.rows].filter((row) => row.parentNode.tagName !== "TFOOT").map(cells));
}

// The fragment: a place on the page, then what is open there and what the sample browser shows.
function view() {
  const [place, query] = location.hash.slice(1).split(/\?(.*)/s);
  return [place, new URLSearchParams(query)];
}

function remember(place, changes) {
  const [, query] = view();
  for (const [name, value] of Object.entries(changes)) value === null ? query.delete(name) : query.set(name, value);
  history.replaceState(null, "", `#${place}${query.size ? `?${query}` : ""}`);
}

const opened = () => [...document.querySelectorAll("main details[id][open]")].map((part) => part.id).join(",") || null;

function restore() {
  const [place, query] = view();
  const names = (query.get("open") ?? "").split(",");
  for (const part of document.querySelectorAll("main details[id]")) if (names.includes(part.id)) part.open = true;
  if (query.has("open") && place !== "browse") (document.getElementById(names.at(-1)) ?? document.getElementById(place))?.scrollIntoView();
}

document.addEventListener("toggle", ({ target }) => {
  if (target.id && (view()[1].get("open") ?? null) !== opened()) remember(target.closest("main > section")?.id ?? "", { open: opened() });
}, true);
addEventListener("hashchange", restore);
restore();

// Where a page may not write to the clipboard, as on some local files, a selection is copied instead.
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const box = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(box);
    box.select();
    const copied = document.execCommand("copy");
    box.remove();
    if (!copied) throw new Error("the browser does not allow it");
  }
}

for (const table of document.querySelectorAll("main table")) {
  const menu = Object.assign(document.createElement("details"), { className: "copy" });
  const title = Object.assign(document.createElement("summary"), { textContent: "Copy this table", ariaLabel: `Copy this table: ${table.caption.textContent}` });
  const state = Object.assign(document.createElement("span"), { className: "small" });
  state.setAttribute("role", "status");
  const buttons = Object.keys(WRITTEN).map((way) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: way });
    button.addEventListener("click", () => copyText(tableText(table, way)).then(
      () => { state.textContent = `Copied as ${way}.`; },
      (error) => { state.textContent = `Not copied: ${error.message}.`; },
    ));
    return button;
  });
  menu.append(title, ...buttons, state);
  (table.closest(".wide") ?? table).after(menu);
}
