// Draws every figure of the page in the page's own colours, and again when these change.
"use strict";
(() => {
  const root = document.documentElement;
  const charts = [...document.querySelectorAll(".chart")];
  const figures = new Map(
    charts.map((chart) => [chart, JSON.parse(document.querySelector(`script[data-for="${chart.id}"]`).textContent)])
  );

  // A figure's colours are names of CSS variables: put their present values in.
  const coloured = (value, style) => {
    if (typeof value === "string") return value.startsWith("var(--") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
  };

  const draw = async () => {
    const style = getComputedStyle(root);
    for (const [chart, figure] of figures) {
      const { data, layout } = coloured(figure, style);
      await Plotly.react(chart, data, layout, { displayModeBar: false, responsive: true, doubleClick: false });
    }
    root.dataset.plotsDrawn = document.querySelectorAll(".chart .main-svg:first-child").length;
  };

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((details) => (details.open = true));
    root.dataset.theme = "light";
    draw();
  });
  addEventListener("afterprint", () => {
    closed.forEach((details) => (details.open = false));
    delete root.dataset.theme;
    draw();
  });
  draw();
})();
