// The page: one model, one image, one answer, and what of it is shown.
import { itemsOf, reaches, shownOf } from "./answer.js"
import { showCard } from "./card.js"
import { css, light } from "./colours.js"
import { curlLine } from "./curl.js"
import { counted, find, make } from "./elements.js"
import * as picture from "./picture.js"
import { Problem, address, detect, hasKey, models, useKey } from "./server.js"

const SLOW_TO_SPEAK = 350 // ms without a change before a screen reader hears of it

let known = [] // the server's models
let model = null
let image = null // {file, name} or {url}
let found = null // {objects, segments, floor of each} of the last answer
let threshold = null // null: the model's own
let view = "objects"
const chosen = new Set() // classes; none is all
let running = null // AbortController of the request in flight
let again = () => {}

const own = () => (view === "segments" ? { default: found.floor.segments, classes: {} } : model.threshold)
const items = () => found[view]

// ------------------------------------------------------------------------------------------------ models
async function start() {
  try {
    known = await models()
  } catch (error) {
    return report(error, start)
  }
  settle()
  const select = find("model")
  select.replaceChildren(...known.map((one) => make("option", { value: one.id }, one.id)))
  select.disabled = known.length === 0
  if (!known.length) return report(new Problem(0, "No model is served", "Start the server with the name of one: zoo serve NAME."), start)
  choose(known[0].id)
}

function choose(id) {
  model = known.find((one) => one.id === id)
  find("model-facts").textContent = [counted(model.label_map.length, "class"), model.runtime].filter(Boolean).join(" · ")
  showCard(model)
  if (image) run(image)
}

// ------------------------------------------------------------------------------------------------ one request
async function run(given, withPicture = given.url !== undefined) {
  running?.abort()
  const mine = (running = new AbortController())
  const isOld = () => running !== mine
  image = given
  settle()
  forget()
  busy(true)
  try {
    if (!withPicture) {
      // what the browser cannot read, the server may: TIFF, more bands
      withPicture = await picture.showImage(given.file, `The image ${given.name}`).then(() => false, () => true)
      if (isOld()) return
    }
    if (withPicture) picture.hideImage()
    // scores of 0 and more, so that the slider needs no request; segments depend on the threshold: theirs is the model's
    const options = { model: model.id, ...(model.kind === "panoptic" ? {} : { threshold: 0 }), ...(withPicture ? { picture: true } : {}) }
    const answer = await detect(given, options, mine.signal)
    if (isOld()) return
    if (withPicture) await picture.showImage(answer.picture, given.name ? `The image ${given.name}` : "The image at the address")
    else if (!picture.isSized(answer)) return run(given, true)
    await picture.takeAnswer(answer)
    if (isOld()) return
    take(answer)
  } catch (error) {
    if (error.name === "AbortError" || isOld()) return
    report(error, () => run(given))
  }
  busy(false)
}

function take(answer) {
  const floor = { objects: Math.min(answer.threshold, ...Object.values(answer.class_thresholds ?? {})), segments: answer.panoptic?.threshold }
  found = { ...itemsOf(answer), pixels: answer.width * answer.height, floor }
  threshold = null
  chosen.clear()
  chips = ""
  view = found.segments ? "segments" : "objects"
  find("views").hidden = !found.segments
  find("views").querySelector(`[value=${view}]`).checked = true
  find("curl").hidden = false
  find("results").classList.remove("waiting")
  show()
}

/** What was found is no longer seen; its place is kept for the next answer. */
function forget() {
  found = null
  find("results").hidden = false
  find("results").classList.add("waiting")
  find("curl").hidden = true
}

function busy(is) {
  find("stage").setAttribute("aria-busy", is)
  if (is) find("live").textContent = "Detecting…"
}

// ------------------------------------------------------------------------------------------------ what is shown
function show() {
  const shown = shownOf(items(), threshold, own(), chosen)
  picture.draw(shown)
  showThreshold()
  showClasses()
  showRows(shown)
  showCurl()
  say(shown)
}

let speaking
function say(shown) {
  const noun = view === "segments" ? "segment" : "object"
  const words = shown.length
    ? `${counted(shown.length, noun)} of ${counted(new Set(shown.map((item) => item.name)).size, "class")}`
    : `No ${noun} is shown${items().length ? `; the best score is ${items()[0].score.toFixed(2)}` : ""}`
  find("status").textContent = words
  clearTimeout(speaking)
  speaking = setTimeout(() => { find("live").textContent = words }, SLOW_TO_SPEAK)
}

function showThreshold() {
  const slider = find("threshold"), value = threshold ?? own().default
  const floor = Math.ceil(100 * found.floor[view] - 1e-6) / 100
  slider.min = floor
  slider.value = value
  const text = threshold === null ? Number(value.toFixed(3)).toString() : value.toFixed(2)
  find("threshold-value").textContent = text
  slider.setAttribute("aria-valuetext", text)
  find("own").hidden = threshold === null
  const several = Object.keys(own().classes).length
  const notes = []
  if (threshold === null) notes.push(several ? `The model's own, and others for ${counted(several, "class")}.` : "The model's own.")
  if (floor > 0) notes.push(`The model's rule makes no ${view} below ${Number(found.floor[view].toFixed(3))}.`)
  find("threshold-note").textContent = notes.join(" ")
}

let chips = ""
function showClasses() {
  const counts = new Map(), colours = new Map()
  for (const { name, colour } of items().filter((item) => reaches(item, threshold, own()))) {
    counts.set(name, (counts.get(name) ?? 0) + 1)
    if (!colours.has(name)) colours.set(name, colour)
  }
  for (const name of chosen) if (!counts.has(name)) counts.set(name, 0)
  find("classes").hidden = counts.size === 0
  find("all-classes").hidden = chosen.size === 0
  const next = JSON.stringify([...counts, view])
  if (next === chips) return // the chip that was just pressed keeps the focus
  chips = next
  find("class-chips").replaceChildren(...[...counts].map(([name, count]) => chip(name, count, colours.get(name))))
}

function chip(name, count, colour) {
  const box = make("input", { type: "checkbox", class: "unseen", value: name })
  box.checked = chosen.has(name)
  const dot = make("i", { "aria-hidden": "true" })
  if (colour) dot.style.background = css(light(colour))
  return make("label", { class: "chip" }, box, make("span", {}, dot, name, " ", make("b", {}, String(count))))
}

function showRows(shown) {
  const isSegments = view === "segments"
  find("place-head").textContent = isSegments ? "Share of the image" : "Left, top, right, bottom"
  find("rows").replaceChildren(...shown.map((item, index) => row(item, index === 0)))
}

function row(item, isFirst) {
  const dot = make("i", { class: "dot", "aria-hidden": "true" })
  dot.style.background = css(light(item.colour))
  const place = item.box ? item.box.map((value) => Math.round(value)).join(", ") : `${((100 * item.area) / found.pixels).toFixed(1)} %`
  return make("tr", { tabindex: isFirst ? 0 : -1, "data-number": item.number },
    make("th", { scope: "row" }, dot, item.name),
    make("td", { class: "number" }, item.score.toFixed(3)),
    make("td", { class: "number soft" }, place))
}

function showCurl() {
  const options = { model: model.id }
  if (threshold !== null) options.threshold = Number(threshold.toFixed(2))
  if (chosen.size) options.classes = [...chosen]
  find("curl-line").textContent = curlLine(address("v1/detect"), image, options, hasKey())
  const notes = []
  if (image.isPasted) notes.push(`Save the pasted image as ${image.name} first.`)
  if (hasKey()) notes.push("Your key is not in the line: set ZOO_API_KEY to it.")
  find("curl-note").textContent = notes.join(" ")
}

// ------------------------------------------------------------------------------------------------ errors
function report(error, repeat) {
  console.debug(error)
  const problem = error instanceof Problem ? error : new Problem(0, "The page could not show the answer", `${error.message}. Reload the page; if it happens again, it is a fault of the page.`)
  again = repeat
  find("results").hidden = true
  find("live").textContent = ""
  if (problem.status === 401) return askKey(hasKey())
  find("problem-title").textContent = problem.title
  find("problem-detail").textContent = problem.detail
  find("problem").hidden = false
}

function settle() {
  find("problem").hidden = true
  find("key-form").hidden = true
}

function askKey(wasRefused) {
  find("key-why").textContent = wasRefused
    ? "The key was refused. Enter another that its operator gave you."
    : "Enter one that its operator gave you. It is kept until this page is closed."
  find("key-form").hidden = false
  find("key").value = ""
  find("key").focus()
}

// ------------------------------------------------------------------------------------------------ what a person does
const runFile = (file, isPasted = false) => run({ file, name: file.name || "image.png", isPasted })
const runUrl = (url) => run({ url })

find("model").addEventListener("change", (event) => choose(event.target.value))
find("again").addEventListener("click", () => again())
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault()
  useKey(find("key").value)
  settle()
  again()
})
find("file").addEventListener("change", (event) => {
  if (event.target.files[0]) runFile(event.target.files[0])
  event.target.value = "" // the same file may be chosen again
})
find("url-form").addEventListener("submit", (event) => {
  event.preventDefault()
  runUrl(find("url").value.trim())
})
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"))
  if (!file) return
  event.preventDefault()
  runFile(file, true)
})
document.addEventListener("dragover", (event) => {
  event.preventDefault()
  document.body.classList.add("dragged")
})
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragged")
})
document.addEventListener("drop", (event) => {
  event.preventDefault()
  document.body.classList.remove("dragged")
  const file = event.dataTransfer.files[0], url = event.dataTransfer.getData("text/uri-list").split(/\r?\n/)[0]
  if (file) runFile(file)
  else if (url) runUrl(url)
})
find("threshold").addEventListener("input", (event) => {
  threshold = Number(event.target.value)
  show()
})
find("own").addEventListener("click", () => {
  threshold = null
  show()
  find("threshold").focus()
})
find("views").addEventListener("change", (event) => {
  view = event.target.value
  threshold = null
  chosen.clear()
  show()
})
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

// rows: one stop of the Tab key, arrows between them
function mark(number) {
  picture.highlight(number)
  for (const one of find("rows").children) one.classList.toggle("strong", Number(one.dataset.number) === number)
}
const rowOf = (event) => event.target.closest?.("tr[data-number]")
const focusedNumber = () => {
  const row = document.activeElement?.closest("tr[data-number]")
  return row ? Number(row.dataset.number) : null
}
find("rows").addEventListener("focusin", (event) => {
  for (const one of find("rows").children) one.tabIndex = one === rowOf(event) ? 0 : -1
  mark(Number(rowOf(event).dataset.number))
})
find("rows").addEventListener("focusout", () => mark(null))
find("rows").addEventListener("pointerover", (event) => mark(Number(rowOf(event).dataset.number)))
find("rows").addEventListener("pointerleave", () => mark(focusedNumber()))
find("rows").addEventListener("keydown", (event) => {
  const row = rowOf(event)
  const target = {
    ArrowDown: row.nextElementSibling,
    ArrowUp: row.previousElementSibling,
    Home: row.parentElement.firstElementChild,
    End: row.parentElement.lastElementChild,
  }[event.key]
  if (target === undefined) return
  event.preventDefault()
  target?.focus()
})
picture.onPointed((number) => mark(number ?? focusedNumber()))

find("copy").addEventListener("click", async () => {
  const button = find("copy")
  try {
    await navigator.clipboard.writeText(find("curl-line").textContent)
    button.textContent = "Copied"
  } catch {
    getSelection().selectAllChildren(find("curl-line")) // without https there is no clipboard
    button.textContent = "Selected: press Ctrl+C"
  }
  find("live").textContent = button.textContent
  setTimeout(() => { button.textContent = "Copy" }, 2000)
})

start()
