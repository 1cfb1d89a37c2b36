// Every table can be copied as CSV, Markdown or LaTeX: its text as it is shown, without what only screen readers hear.
"use strict";

const TEX = {
  "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "%": "\\%", "#": "\\#", "_": "\\_", "^": "\\textasciicircum{}",
  "~": "\\textasciitilde{}", "<": "\\textless{}", ">": "\\textgreater{}", "±": "$\\pm$", "≤": "$\\leq$", "\u2013": "--", "-": "{-}",
};
const WRITTEN = {
  CSV: (rows) => rows.map((row) => row.map(csvCell).join(",")).join("\n"),
  Markdown: ([head, ...rows]) => [head, head.map(() => "---"), ...rows].map((row) => `| ${row.map((cell) => cell.replace(/[\\|`*_<]/g, "\\$&")).join(" | ")} |`).join("\n"),
  LaTeX: ([head, ...rows]) => [
    "% needs \\usepackage{booktabs}", `\\begin{tabular}{l${"r".repeat(head.length - 1)}}`, "\\toprule", texRow(head), "\\midrule", ...rows.map(texRow),
    "\\bottomrule", "\\end{tabular}",
  ].join("\n"),
};

// A cell that a spreadsheet would take for a formula is marked as text.
function csvCell(text) {
  const safe = /^[=+@-]/.test(text) && !/^[+-]?[\d.]/.test(text) ? `'${text}` : text;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

const texRow = (row) => `${row.map((cell) => cell.replace(/[\\{}$&%#_^~<>±≤\u2013-]/g, (item) => TEX[item])).join(" & ")} \\\\`;

function tableText(table, way) {
  const cells = (row) => [...row.cells].map((cell) => {
    const copy = cell.cloneNode(true);
    copy.querySelectorAll(".heard").forEach((item) => item.remove());
    return copy.textContent.replace(/\s+/g, " ").trim().replaceAll("\u2212", "-");
  });
  return WRITTEN[way]([...table.rows].map(cells));
}

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

for (const region of document.querySelectorAll(".wide")) {
  const menu = Object.assign(document.createElement("details"), { className: "copy" });
  const title = Object.assign(document.createElement("summary"), { textContent: "Copy this table" });
  const state = Object.assign(document.createElement("span"), { className: "small" });
  state.setAttribute("role", "status");
  const buttons = Object.keys(WRITTEN).map((way) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: way });
    button.addEventListener("click", () => copyText(tableText(region.querySelector("table"), way)).then(
      () => { state.textContent = `Copied as ${way}.`; },
      (error) => { state.textContent = `Not copied: ${error.message}.`; },
    ));
    return button;
  });
  menu.append(title, ...buttons, state);
  region.after(menu);
}
