"use strict"
// everything from the data set is set as text, never as markup
const scene = JSON.parse(document.getElementById("report").textContent)
const make = (tag, className = "", text = "") => {
  const element = document.createElement(tag)
  if (className) element.className = className
  if (text) element.textContent = text
  return element
}
const drawn = (tag, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  return element
}
const nameOf = (place) => scene.classes[place]

// ---------------------------------------------------------------- images with their boxes
const LABELS = 8 // on one image; more would cover it
function photo(row, isStrong) {
  const facts = scene.pictures[row]
  const isMarked = (side) => (entry) => !isStrong || isStrong(side, entry[0], entry[side === "object" ? 6 : 7], entry[5])
  const labelled = facts.objects.filter((entry) => entry[6] === "missed").filter(isMarked("object")).length
    + facts.found.filter(isMarked("found")).length
  const figure = make("figure", "card"), frame = make("div", "photo")
  if (facts.jpeg) {
    const image = make("img")
    image.src = "data:image/jpeg;base64," + facts.jpeg
    image.alt = facts.file
    frame.append(image)
  } else frame.append(make("div", "hole", "the image cannot be read"))
  const layer = drawn("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" })
  frame.append(layer)
  const put = (x, y, w, h, kind, strong, text) => {
    const faint = isStrong && !strong ? " faint" : ""
    layer.append(drawn("rect", { x, y, width: w, height: h, class: kind + faint + (strong ? " strong" : "") }))
    if (!text || (isStrong && !strong) || labelled > LABELS) return
    const label = make("em", kind, text)
    label.style.left = 100 * Math.min(Math.max(x, 0), 0.85) + "%"
    label.style.top = 100 * Math.min(Math.max(y, 0), 0.95) + "%"
    frame.append(label)
  }
  for (const [id, x, y, w, h, place, state] of facts.objects)
    put(x, y, w, h, state, isStrong && isStrong("object", id, state, place), state === "missed" ? nameOf(place) : "")
  for (const [id, x, y, w, h, place, score, kind] of facts.found)
    put(x, y, w, h, kind ? (kind === "crowd" ? "crowd" : "wrong") : "right",
      isStrong && isStrong("found", id, kind, place), `${nameOf(place)} ${score.toFixed(2)}`)
  figure.append(frame)
  const words = `${facts.objects.length} annotated, ${facts.found.length} detected`
  figure.append(make("figcaption", "", `${facts.file} · ${words}`))
  return figure
}

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

// ---------------------------------------------------------------- tables and curves
for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("th").forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending"
    const key = (row) => {
      const text = row.cells[column].textContent
      const number = parseFloat(text.replaceAll(",", ""))
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
document.getElementById("pr-class")?.addEventListener("change", (event) => {
  const svg = document.querySelector("#pr svg")
  svg.querySelector(".chosen")?.remove()
  if (event.target.value === "") return
  const { left, right, top, bottom } = scene.plot
  const points = scene.precision[Number(event.target.value)].map((value, k) =>
    `${left + (right - left) * k / 100} ${bottom - (bottom - top) * value}`)
  svg.append(drawn("path", { d: "M" + points.join("L"), class: "line c3 chosen" }))
})
