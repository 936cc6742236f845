"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figure-data").textContent);
  const config = { displayModeBar: false, responsive: true };
  const dark = window.matchMedia("screen and (prefers-color-scheme: dark)");

  const themed = (given) => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const layout = structuredClone(given);
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = { family: getComputedStyle(document.body).fontFamily, size: 13, ...layout.font, color: colour("--text") };
    layout.hoverlabel = { align: "left", bgcolor: colour("--card"), bordercolor: colour("--muted"), font: { color: colour("--text") } };
    for (const [name, axis] of Object.entries(layout)) {
      if (!/^[xy]axis\d*$/.test(name)) continue;
      Object.assign(axis, { gridcolor: colour("--grid"), zerolinecolor: colour("--muted"), linecolor: colour("--line"), automargin: true });
    }
    return layout;
  };

  const draw = () => {
    for (const [id, figure] of Object.entries(figures)) {
      const place = document.getElementById(id);
      if (place) Plotly.react(place, figure.data, themed(figure.layout), config);
    }
  };

  draw();
  dark.addEventListener("change", draw);
  window.addEventListener("beforeprint", draw);
  window.addEventListener("afterprint", draw);
})();
