// ---------------------------------------------------------------- tables that are sorted by a click
for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("th").forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending"
    const key = (row) => {
      const text = row.cells[column].textContent
      const number = parseFloat(text.replaceAll(",", "").replace("−", "-"))
      return Number.isNaN(number) || head.cellIndex === 0 ? text : number
    }
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)]
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1
      return (typeof x === "number" ? x - y : x.localeCompare(y)) * (down ? -1 : 1)
    })
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"))
    head.setAttribute("aria-sort", down ? "descending" : "ascending")
    table.tBodies[0].append(...rows)
  }))
