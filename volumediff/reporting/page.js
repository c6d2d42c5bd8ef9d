"use strict";
// What every page does: say where a table is wider than the page, sort and filter lists of cases,
// open all sections for printing.
(() => {
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      target.classList.toggle("wide", target.scrollWidth > target.clientWidth + 1);
    }
  });
  document.querySelectorAll(".scroll").forEach((frame) => watch.observe(frame));

  addEventListener("beforeprint", () => {
    document.querySelectorAll("details:not([open])").forEach((d) => {
      d.open = true;
      d.dataset.closed = "";
    });
  });
  addEventListener("afterprint", () => {
    document.querySelectorAll("details[data-closed]").forEach((d) => {
      d.open = false;
      delete d.dataset.closed;
    });
  });

  // Numbers by size, words by the alphabet with numbers in them by size; what is missing comes last.
  const words = new Intl.Collator("en", { numeric: true });
  function before(a, b, direction) {
    if (a === b) return 0;
    if (a === "" || b === "") return a === "" ? 1 : -1;
    const [x, y] = [Number(a), Number(b)];
    return direction * (Number.isNaN(x) || Number.isNaN(y) ? words.compare(a, b) : x - y);
  }

  document.querySelectorAll(".case-list").forEach((list) => {
    const body = list.querySelector("tbody");
    const rows = [...body.rows];
    const heads = [...list.querySelectorAll("thead th")];
    const said = list.querySelector("[data-shown]");
    const filters = [...list.querySelectorAll("[data-filter]")];

    function filter() {
      let shown = 0;
      for (const row of rows) {
        row.hidden = !filters.every((control) => {
          const wanted = control.value.trim().toLowerCase();
          const has = row.dataset[control.dataset.filter].toLowerCase();
          return !wanted || (control.tagName === "SELECT" ? has === wanted : has.includes(wanted));
        });
        shown += !row.hidden;
      }
      said.textContent = `${shown} of ${rows.length} cases`;
    }

    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
        const value = (row) => row.cells[column].dataset.order ?? row.cells[column].textContent;
        rows.sort((a, b) => before(value(a), value(b), direction));
        body.append(...rows);
      });
    });
    filters.forEach((control) => control.addEventListener("input", filter));
    list.querySelector(".filters").hidden = false;
    filter();
  });
})();
