"use strict";
(function () {
  const THEME_KEY = "maskperf-theme";
  const ROWS_AT_FIRST = 15;
  const ROWS_AROUND = 4;
  const MOST_RUNS_WITH_DOTS = 3;
  const PRINTED_WIDTHS = { wide: 660, small: 210 };
  const root = document.documentElement;
  const all = (selector, inside) => Array.from((inside || document).querySelectorAll(selector));
  let numbers = null;
  let axis = "epochs";
  const hiddenRuns = new Set();

  // Some browsers give a page opened from disk no storage; the choice is then good for this visit.
  function storedTheme() {
    try { return window.localStorage.getItem(THEME_KEY); } catch (error) { return null; }
  }
  function storeTheme(theme) {
    try { window.localStorage.setItem(THEME_KEY, theme); } catch (error) { return; }
  }
  const systemIsDark = window.matchMedia("(prefers-color-scheme: dark)");
  const currentTheme = () => root.dataset.theme || (systemIsDark.matches ? "dark" : "light");
  if (["light", "dark"].includes(storedTheme())) root.dataset.theme = storedTheme();

  function setUpTheme() {
    document.getElementById("theme-button").addEventListener("click", () => {
      root.dataset.theme = currentTheme() === "dark" ? "light" : "dark";
      storeTheme(root.dataset.theme);
      drawPlots();
    });
    systemIsDark.addEventListener("change", drawPlots);
  }

  // The value of a colour variable; a probe is needed, because the variable itself reads "light-dark(...)".
  function colours() {
    const probe = document.createElement("span");
    document.body.append(probe);
    const read = (name) => {
      probe.style.color = "var(--" + name + ")";
      return getComputedStyle(probe).color;
    };
    const found = { runs: [0, 1, 2, 3, 4, 5, 6].map((index) => read("run-" + index)) };
    for (const name of ["page", "ink", "quiet", "line", "band", "bad"]) found[name] = read(name);
    probe.remove();
    return found;
  }
  const faint = (colour, share) => colour.replace("rgb(", "rgba(").replace(")", ", " + share + ")");

  function runTraces(plot, shownAxis, colour) {
    const traces = [];
    numbers.runs.forEach((run, index) => {
      const values = run[plot.key];
      if (hiddenRuns.has(index) || !values.some((value, at) => value !== null && run[shownAxis][at] !== null)) return;
      const few = values.length <= 40 && numbers.runs.length <= MOST_RUNS_WITH_DOTS;
      const isCrowded = numbers.runs.length > MOST_RUNS_WITH_DOTS;
      traces.push({
        type: "scatter", mode: few || values.length === 1 ? "lines+markers" : "lines", name: run.name, x: run[shownAxis], y: values,
        line: { color: colour.runs[index % 7], width: run.compared || isCrowded ? 1.5 : 2, dash: run.compared ? "dash" : "solid" },
        marker: { size: run.compared ? 4 : 6 }, connectgaps: false, hovertemplate: "%{y:" + plot.format + "}",
      });
    });
    return traces;
  }

  function bandTraces(plot, shownAxis, colour) {
    const outline = numbers.band && numbers.band[plot.key] && numbers.band[plot.key][shownAxis];
    if (!outline || !outline.x.length) return [];
    const basis = { type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: colour.band, width: 1.5, dash: "dot" } };
    return [
      { ...basis, x: outline.x, y: outline.y, fill: "toself", fillcolor: faint(colour.band, 0.22), line: { width: 0 } },
      { ...basis, x: outline.middle_x, y: outline.middle_y },
    ];
  }

  function targetMarks(plot, colour) {
    if (plot.target === null) return [];
    const line = { xref: "paper", x0: 0, x1: 1, y0: plot.target, y1: plot.target, line: { color: colour.ink, width: 1 } };
    const font = { size: 12, color: colour.ink };
    return [{ line, label: { xref: "paper", x: 0, xanchor: "left", y: plot.target, text: "target " + plot.target, font } }];
  }

  // Where the guard noticed something: an upright line, named at its top.
  function guardMarks(plot, colour) {
    if (plot.key !== "total") return [];
    const shown = numbers.runs.filter((run, index) => !hiddenRuns.has(index));
    return shown.flatMap((run) => run.guard).map((event, place) => ({
      line: { yref: "paper", x0: event.step, x1: event.step, y0: 0, y1: 1, line: { color: colour.bad, width: 1, dash: "dot" } },
      label: { x: event.step, xanchor: "right", yref: "paper", y: 0.9 - 0.1 * (place % 5), text: event.kind, font: { size: 12, color: colour.bad } },
    }));
  }

  function layoutOf(plot, shownAxis, colour, traces) {
    const lastX = Math.max(0, ...traces.flatMap((trace) => trace.x.filter((value) => value !== null)));
    const marks = [...targetMarks(plot, colour), ...guardMarks(plot, colour)];
    const titles = {
      epochs: "Epoch", minutes: "Minutes since run_start", steps: "Step", recall: "Recall", score_box: "Score", score_mask: "Score",
    };
    const range = plot.unit ? { range: [0, 1.02] } : {};
    if (plot.diagonal) marks.push({ line: { x0: 0, y0: 0, x1: 1, y1: 1, line: { color: colour.quiet, width: 1, dash: "dot" } } });
    const line = { gridcolor: colour.line, linecolor: colour.line, zeroline: false, fixedrange: isTouched, automargin: true, exponentformat: "none" };
    return {
      autosize: true, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 10, t: 12, b: 36 }, dragmode: isTouched ? false : "zoom",
      hovermode: shownAxis === "minutes" ? "closest" : "x unified",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour.quiet },
      hoverlabel: { bgcolor: colour.page, bordercolor: colour.line, font: { color: colour.ink, size: 12 }, namelength: 34 },
      xaxis: {
        ...line, ...range, showgrid: false, exponentformat: "SI", ticks: "outside", tickcolor: colour.line, ticklen: 4,
        title: { text: titles[shownAxis], standoff: 6, font: { size: 12 } },
        ...(shownAxis === "epochs" ? { dtick: Math.max(1, Math.ceil(lastX / 12)), tickformat: "d", hoverformat: "d" } : {}),
        ...(shownAxis === "steps" && lastX <= 10 ? { dtick: 1 } : {}),
        unifiedhovertitle: { text: titles[shownAxis].split(" ")[0] + " %{x}" },
      },
      yaxis: { ...line, ...range, ...(plot.top ? { range: [0, plot.top * 1.02] } : {}), nticks: 6, tickformat: plot.key === "learning_rate" ? "~g" : undefined, rangemode: plot.key.endsWith("ap") ? "nonnegative" : "tozero" },
      shapes: marks.map((mark) => ({ type: "line", ...mark.line })),
      annotations: marks.filter((mark) => mark.label).map((mark) => ({ showarrow: false, yanchor: "bottom", ...mark.label })),
    };
  }

  const isTouched = window.matchMedia("(pointer: coarse)").matches;

  function drawPlots() {
    const colour = colours();
    for (const plot of numbers.plots) {
      const place = document.getElementById("plot-" + plot.key);
      const shownAxis = plot.axes.includes(axis) ? axis : plot.axes[0];
      const traces = [...bandTraces(plot, shownAxis, colour), ...runTraces(plot, shownAxis, colour)];
      const layout = layoutOf(plot, shownAxis, colour, traces);
      window.Plotly.react(place, traces, layout, { displayModeBar: false, responsive: true, scrollZoom: false });
    }
  }

  function setUpPlots() {
    numbers = JSON.parse(document.getElementById("plot-numbers").textContent);
    for (const button of all(".axis-button")) {
      button.addEventListener("click", () => {
        axis = button.dataset.axis;
        for (const other of all(".axis-button")) other.setAttribute("aria-pressed", String(other === button));
        drawPlots();
      });
    }
    for (const button of all(".legend-button")) {
      button.addEventListener("click", () => {
        const run = Number(button.dataset.run);
        if (!hiddenRuns.delete(run)) hiddenRuns.add(run);
        for (const other of all('.legend-button[data-run="' + run + '"]')) {
          other.setAttribute("aria-pressed", String(!hiddenRuns.has(run)));
        }
        drawPlots();
      });
    }
    drawPlots();
  }

  function setUpRunChoice() {
    for (const choice of all(".run-choice")) {
      choice.addEventListener("change", () => {
        for (const other of all(".run-choice")) other.value = choice.value;
        for (const panel of all(".run-panel")) panel.hidden = panel.dataset.run !== choice.value;
      });
    }
  }

  function sortTable(table, head, direction) {
    const column = Array.from(head.parentElement.children).indexOf(head);
    const isText = head.classList.contains("text");
    const sign = direction === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const keyed = Array.from(body.rows).map((row) => {
      const cell = row.cells[column];
      return { row, key: isText ? cell.textContent : cell.dataset.value === "" ? null : Number(cell.dataset.value) };
    });
    keyed.sort((first, second) => {
      if (first.key === null || second.key === null) return (first.key === null) - (second.key === null);
      return sign * (isText ? first.key.localeCompare(second.key, "en", { numeric: true }) : first.key - second.key);
    });
    body.append(...keyed.map((entry) => entry.row));
    for (const other of head.parentElement.children) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", other === head ? direction : "none");
    }
    all(".rank", body).forEach((cell, index) => { cell.textContent = String(index + 1); });
  }

  // Long tables begin with their first rows, or those around the row of this report; broken rules are always shown.
  function shorten(table, isWhole) {
    const rows = Array.from(table.tBodies[0].rows);
    const own = rows.findIndex((row) => row.classList.contains("is-this"));
    const isNear = table.dataset.short === "near" && own >= 0;
    const from = isNear ? Math.max(0, Math.min(own - ROWS_AROUND, rows.length - 2 * ROWS_AROUND - 1)) : 0;
    const broken = rows.filter((row) => row.classList.contains("is-broken")).length;
    const to = isNear ? from + 2 * ROWS_AROUND + 1 : Math.max(ROWS_AT_FIRST, broken);
    rows.forEach((row, index) => { row.hidden = !isWhole && (index < from || index >= to); });
    return rows.length > to - from;
  }

  function setUpTable(table) {
    let isWhole = false;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "text-button";
    const refresh = () => {
      const isLong = shorten(table, isWhole);
      button.hidden = !isLong;
      button.textContent = isWhole ? "Show fewer" : "Show all " + table.tBodies[0].rows.length;
      button.setAttribute("aria-expanded", String(isWhole));
    };
    button.addEventListener("click", () => { isWhole = !isWhole; refresh(); });
    for (const sorter of all(".sort-button", table)) {
      sorter.addEventListener("click", () => {
        const head = sorter.parentElement;
        const before = head.getAttribute("aria-sort");
        const direction = before === "none" ? sorter.dataset.first : before === "ascending" ? "descending" : "ascending";
        sortTable(table, head, direction);
        refresh();
      });
    }
    table.parentElement.after(button);
    refresh();
  }

  function setUpPictures() {
    const dialog = document.getElementById("picture-dialog");
    const large = document.getElementById("picture-large");
    let group = [];
    let at = 0;
    const show = (index) => {
      at = (index + group.length) % group.length;
      const small = group[at].querySelector("img");
      large.src = small.src;
      large.alt = small.alt;
      const texts = all("p", group[at].parentElement).map((line) => line.textContent);
      document.getElementById("picture-caption").textContent = texts.join(": ");
    };
    for (const button of all(".picture-button")) {
      button.addEventListener("click", () => {
        group = all(".picture-button", button.closest(".run-panel, .abreast"));
        show(group.indexOf(button));
        dialog.showModal();
      });
    }
    document.getElementById("picture-close").addEventListener("click", () => dialog.close());
    document.getElementById("picture-before").addEventListener("click", () => show(at - 1));
    document.getElementById("picture-after").addEventListener("click", () => show(at + 1));
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") show(at - 1);
      if (event.key === "ArrowRight") show(at + 1);
    });
  }

  // Paper is narrower than a window and always light, and nothing on it can be opened.
  function setUpPrinting() {
    let before = null;
    window.addEventListener("beforeprint", () => {
      before = { theme: root.dataset.theme, closed: all("details:not([open])") };
      root.dataset.theme = "light";
      before.closed.forEach((details) => { details.open = true; });
      drawPlots();
      for (const plot of numbers.plots) {
        const place = document.getElementById("plot-" + plot.key);
        const size = ["wide", "small"].find((name) => place.parentElement.classList.contains(name));
        window.Plotly.relayout(place, { autosize: false, width: PRINTED_WIDTHS[size] || 320 });
      }
    });
    window.addEventListener("afterprint", () => {
      if (before.theme) root.dataset.theme = before.theme;
      else delete root.dataset.theme;
      before.closed.forEach((details) => { details.open = false; });
      drawPlots();
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    setUpTheme();
    setUpRunChoice();
    all("table[data-short]").forEach(setUpTable);
    setUpPictures();
    setUpPlots();
    setUpPrinting();
  });
})();
