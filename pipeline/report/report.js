"use strict";
(() => {
  const tip = document.getElementById("tip");
  let shown = null;

  const show = (mark) => {
    if (mark === shown) return;
    shown = mark;
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.told;
    const at = mark.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(at.left + at.width / 2 - own.width / 2, 8), innerWidth - own.width - 8);
    const above = at.top - own.height - 10;
    tip.style.left = `${Math.max(left, 8) + scrollX}px`;
    tip.style.top = `${(above > 8 ? above : at.bottom + 10) + scrollY}px`;
  };
  const marked = (event) => (event.target instanceof Element ? event.target.closest("[data-told]") : null);

  document.addEventListener("pointerover", (event) => show(marked(event)));
  document.addEventListener("pointerdown", (event) => show(marked(event)));
  document.addEventListener("focusin", (event) => show(marked(event)));

  // One stop of the Tab key a chart; the arrow keys go from mark to mark inside it.
  for (const plot of document.querySelectorAll("svg.plot")) {
    const visible = () => [...plot.querySelectorAll(".mark")].filter((mark) => mark.getClientRects().length);
    const first = visible()[0];
    if (first) first.setAttribute("tabindex", "0");
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(null);
    const mark = marked(event);
    const plot = mark && mark.closest("svg.plot");
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!plot || !step) return;
    const marks = [...plot.querySelectorAll(".mark")].filter((other) => other.getClientRects().length);
    const next = marks[(marks.indexOf(mark) + step + marks.length) % marks.length];
    mark.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
    event.preventDefault();
  });
})();
