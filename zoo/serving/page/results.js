// What was found in one image, and what of it is shown: threshold, classes, table, curl line.
import { itemsOf, reaches, shownOf } from "./answer.js"
import { css } from "./colours.js"
import { curlLine } from "./curl.js"
import { counted, find, make, speak } from "./elements.js"
import * as picture from "./picture.js"
import { address, hasKey } from "./server.js"

let found = null // {objects, segments, own and floor of each, pixels, model, image}
let threshold = null // null: the model's own
let view = "objects"
const chosen = new Set() // classes; none is all
let chips = "" // what the chips show

/** Shows an answer, which the picture has taken, with the model's own threshold and all classes. */
export function take(answer, model, image) {
  const rule = answer.panoptic?.threshold
  found = {
    ...itemsOf(answer), model, image,
    pixels: answer.width * answer.height,
    own: { objects: model.threshold, segments: { default: rule, classes: {} } },
    // nothing below was asked for
    floor: { objects: Math.min(answer.threshold, ...Object.values(answer.class_thresholds ?? {})), segments: rule },
  }
  const hasSegments = found.segments !== null
  find("views").hidden = !hasSegments
  changeView(hasSegments ? "segments" : "objects")
  find("curl").hidden = false
  find("results").classList.remove("waiting")
}

/** What was found is no longer seen; its place is kept for the next answer. */
export function forget() {
  found = null
  find("results").hidden = false
  find("results").classList.add("waiting")
  find("curl").hidden = true
}

function changeView(next) {
  view = next
  find("views").querySelector(`[value=${view}]`).checked = true
  threshold = null
  chosen.clear()
  chips = ""
  show()
}

function show() {
  const shown = shownOf(found[view], threshold, found.own[view], chosen)
  picture.draw(shown)
  showThreshold()
  showClasses()
  showRows(shown)
  showCurl()
  say(shown)
}

function say(shown) {
  const noun = view === "segments" ? "segment" : "object", best = found[view][0]
  const words = shown.length
    ? `${counted(shown.length, noun)} of ${counted(new Set(shown.map((item) => item.name)).size, "class")}`
    : `No ${noun} is shown${best ? `; the best score is ${best.score.toFixed(2)}` : ""}`
  find("status").textContent = words
  speak(words)
}

const short = (value) => Number(value.toFixed(3)).toString()

function showThreshold() {
  const slider = find("threshold"), own = found.own[view], floor = found.floor[view]
  slider.min = Math.ceil(100 * floor - 1e-6) / 100
  slider.value = threshold ?? own.default
  const text = threshold === null ? short(own.default) : threshold.toFixed(2)
  find("threshold-value").textContent = text
  slider.setAttribute("aria-valuetext", text)
  find("own").hidden = threshold === null
  const others = Object.keys(own.classes).length, notes = []
  if (threshold === null) notes.push(others ? `The model's own; ${counted(others, "class")} with another.` : "The model's own.")
  if (floor > 0) notes.push(view === "segments" ? `Its rule makes no segment below ${short(floor)}.` : `Objects below ${short(floor)} were not asked for.`)
  find("threshold-note").textContent = notes.join(" ")
}

function showClasses() {
  const counts = new Map(), colours = new Map()
  for (const item of found[view]) {
    if (!reaches(item, threshold, found.own[view])) continue
    counts.set(item.name, (counts.get(item.name) ?? 0) + 1)
    if (!colours.has(item.name)) colours.set(item.name, item.colour)
  }
  for (const name of chosen) if (!counts.has(name)) counts.set(name, 0)
  find("classes").hidden = counts.size === 0
  find("all-classes").hidden = chosen.size === 0
  const next = JSON.stringify([...counts])
  if (next === chips) return // the chip that was just pressed keeps the focus
  chips = next
  find("class-chips").replaceChildren(...[...counts].map(([name, count]) => chip(name, count, colours.get(name))))
}

function chip(name, count, colour) {
  const box = make("input", { type: "checkbox", class: "unseen", value: name })
  box.checked = chosen.has(name)
  return make("label", { class: "chip" }, box, make("span", {}, dot(colour), name, " ", make("b", {}, String(count))))
}

function dot(colour) {
  const one = make("i", { class: "dot", "aria-hidden": "true" })
  if (colour) one.style.background = css(colour)
  return one
}

// ------------------------------------------------------------------------------------------------ table
function showRows(shown) {
  find("place-head").textContent = view === "segments" ? "Share of the image" : "Left, top, right, bottom"
  find("rows").replaceChildren(...shown.map((item, index) => row(item, index === 0)))
}

function row(item, isFirst) {
  const place = item.box ? item.box.map((value) => Math.round(value)).join(", ") : `${((100 * item.area) / found.pixels).toFixed(1)} %`
  return make("tr", { tabindex: isFirst ? 0 : -1, "data-number": item.number },
    make("th", { scope: "row" }, dot(item.colour), item.name),
    make("td", { class: "number" }, item.score.toFixed(3)),
    make("td", { class: "number soft" }, place))
}

const numberOf = (element) => {
  const row = element?.closest?.("#rows tr")
  return row ? Number(row.dataset.number) : null
}

/** Marks an item in the picture and the table; null is that of the focused row, if one is focused. */
function mark(number) {
  const strong = number ?? numberOf(document.activeElement)
  picture.highlight(strong)
  for (const one of find("rows").children) one.classList.toggle("strong", Number(one.dataset.number) === strong)
}

picture.onPointed(mark)
find("rows").addEventListener("pointerover", (event) => mark(numberOf(event.target)))
find("rows").addEventListener("pointerleave", () => mark(null))
find("rows").addEventListener("focusout", () => mark(null))
find("rows").addEventListener("focusin", (event) => {
  for (const one of find("rows").children) one.tabIndex = one === event.target ? 0 : -1 // one stop of the Tab key
  mark(null)
})
find("rows").addEventListener("keydown", (event) => {
  const row = event.target.closest("tr"), rows = find("rows")
  const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling, Home: rows.firstElementChild, End: rows.lastElementChild }
  if (!(event.key in next)) return
  event.preventDefault()
  next[event.key]?.focus()
})

// ------------------------------------------------------------------------------------------------ controls
find("threshold").addEventListener("input", (event) => {
  threshold = Number(event.target.value)
  show()
})
find("own").addEventListener("click", () => {
  threshold = null
  show()
  find("threshold").focus()
})
find("views").addEventListener("change", (event) => changeView(event.target.value))
find("class-chips").addEventListener("change", (event) => {
  if (event.target.checked) chosen.add(event.target.value)
  else chosen.delete(event.target.value)
  show()
})
find("all-classes").addEventListener("click", () => {
  chosen.clear()
  chips = ""
  show()
  find("class-chips").querySelector("input")?.focus()
})

// ------------------------------------------------------------------------------------------------ curl
function showCurl() {
  const options = { model: found.model.id }
  if (threshold !== null) options.threshold = Number(threshold.toFixed(2))
  if (chosen.size) options.classes = [...chosen]
  find("curl-line").textContent = curlLine(address("v1/detect"), found.image, options, hasKey())
  const notes = []
  if (found.image.isPasted) notes.push(`Save the pasted image as ${found.image.name} first.`)
  if (hasKey()) notes.push("Your key is not in the line: set ZOO_API_KEY to it.")
  find("curl-note").textContent = notes.join(" ")
}

find("copy").addEventListener("click", async () => {
  const button = find("copy")
  try {
    await navigator.clipboard.writeText(find("curl-line").textContent)
    button.textContent = "Copied"
  } catch {
    getSelection().selectAllChildren(find("curl-line")) // without https there is no clipboard
    button.textContent = "Selected: press Ctrl+C"
  }
  speak(button.textContent)
  setTimeout(() => { button.textContent = "Copy" }, 2000)
})
