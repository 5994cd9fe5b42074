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
