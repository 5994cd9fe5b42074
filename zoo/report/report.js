// ---------------------------------------------------------------- the worst images of a kind
const kinds = [...document.querySelectorAll("button[data-kind]")]
function showKind(kind) {
  const strong = (side, id, state) => state === kind
  document.getElementById("worst").replaceChildren(
    ...scene.worst[kind].filter((row) => row in scene.pictures).map((row) => photo(row, strong)))
  for (const button of kinds) button.setAttribute("aria-pressed", button.dataset.kind === kind)
  for (const button of kinds) button.style.borderColor = button.dataset.kind === kind ? "var(--blue)" : ""
}
for (const button of kinds) button.addEventListener("click", () => showKind(button.dataset.kind))
if (kinds.length) showKind(kinds[0].dataset.kind)

// ---------------------------------------------------------------- what is taken for what
const dialog = document.getElementById("dialog")
dialog.querySelector(".close").addEventListener("click", () => dialog.close())
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close() })
function wordsOf(cell) {
  if (cell.shown < 0) return `${nameOf(cell.true)}: missed`
  if (cell.true < 0) return `background taken for ${nameOf(cell.shown)}`
  return cell.true === cell.shown ? `${nameOf(cell.true)}: right` : `${nameOf(cell.true)} taken for ${nameOf(cell.shown)}`
}
function showCell(cell) {
  dialog.querySelector("h3").textContent = `${wordsOf(cell)} (${cell.count})`
  const images = [...new Set(cell.examples.map((example) => example[0]))].filter((row) => row in scene.pictures)
  const strong = (side, id) => cell.examples.some((example) => example[side === "object" ? 1 : 2] === id)
  dialog.querySelector(".gallery").replaceChildren(...images.map((row) => photo(row, strong)))
  const shown = new Set(images.map((row) => scene.pictures[row].file))
  const others = cell.files.filter((file) => !shown.has(file))
  dialog.querySelector("p").textContent = others.length ? `${images.length ? "Also in" : "In"} ${others.join(", ")}` : ""
  dialog.showModal()
}
function cellButton(cell, text) {
  const button = make("button", "", text)
  button.addEventListener("click", () => showCell(cell))
  button.title = wordsOf(cell)
  return button
}
function listOf(title, cells) {
  const whole = make("div"), list = make("ul", "list")
  for (const cell of cells.slice(0, scene.listed)) {
    const item = make("li"), button = cellButton(cell, "")
    button.append(make("span", "", wordsOf(cell)), make("b", "", cell.count.toLocaleString()))
    item.append(button)
    list.append(item)
  }
  if (!cells.length) list.append(make("li", "soft", "none"))
  whole.append(make("h3", "", title), list)
  return whole
}
document.getElementById("confusions").append(
  listOf("Taken for another class", scene.cells.filter((c) => c.true >= 0 && c.shown >= 0 && c.true !== c.shown)),
  listOf("Missed", scene.cells.filter((c) => c.true >= 0 && c.shown < 0)),
  listOf("Background", scene.cells.filter((c) => c.true < 0)))
function matrix(places) {
  const table = make("table", "matrix"), head = make("tr"), whole = make("tbody")
  head.append(make("th", "soft", "is \\ shown as"))
  const column = (text) => {
    const cell = make("th"), inner = make("span", "", text)
    cell.scope = "col"
    cell.append(inner)
    head.append(cell)
  }
  places.forEach((place) => column(nameOf(place)))
  column("missed")
  const byPair = new Map(scene.cells.map((cell) => [`${cell.true},${cell.shown}`, cell]))
  for (const row of [...places, -1]) {
    const line = make("tr"), title = make("th", "", row < 0 ? "background" : nameOf(row))
    title.scope = "row"
    line.append(title)
    for (const shown of [...places, -1]) {
      const cell = byPair.get(`${row},${shown}`), box = make("td")
      if (cell) {
        const total = row < 0 ? scene.backgrounds : scene.totals[row]
        const button = cellButton(cell, cell.count.toLocaleString())
        const share = Math.round(10 + 70 * Math.min(cell.count / Math.max(total, 1), 1))
        button.style.background = `color-mix(in srgb, var(${row === shown ? "--fine" : "--error"}) ${share}%, transparent)`
        if (row === shown) button.classList.add("right")
        box.append(button)
      } else box.append(make("span", "soft", row < 0 && shown < 0 ? "" : "·"))
      line.append(box)
    }
    whole.append(line)
  }
  const top = make("thead")
  top.append(head)
  table.append(top, whole)
  return table
}
if (scene.matrix.length) {
  const place = document.getElementById("matrix")
  place.append(make("h3", "", scene.matrix.length < scene.classes.length
    ? `The ${scene.matrix.length} classes with most errors of ${scene.classes.length}` : "All classes"), matrix(scene.matrix))
}

// ---------------------------------------------------------------- the curve of one class
document.getElementById("pr-class")?.addEventListener("change", (event) => {
  const svg = document.querySelector("#pr svg")
  svg.querySelector(".chosen")?.remove()
  if (event.target.value === "") return
  const { left, right, top, bottom } = scene.plot
  const points = scene.precision[Number(event.target.value)].map((value, k) =>
    `${left + (right - left) * k / 100} ${bottom - (bottom - top) * value}`)
  svg.append(drawn("path", { d: "M" + points.join("L"), class: "line c3 chosen" }))
})
