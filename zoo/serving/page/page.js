// The page: a model, an image, and the request for what is in it.
import { showCard } from "./card.js"
import { counted, find, make, speak } from "./elements.js"
import * as picture from "./picture.js"
import { forget, take } from "./results.js"
import { Problem, detect, hasKey, models, useKey } from "./server.js"

const PICTURES = find("file").accept
let known = [] // the server's models
let model = null
let image = null // {file, name, isPasted} or {url}
let running = null // AbortController of the last request
let again = () => {}

// ------------------------------------------------------------------------------------------------ models
async function start() {
  settle()
  try {
    known = await models()
  } catch (error) {
    return report(error, start)
  }
  find("model").replaceChildren(...known.map((one) => make("option", { value: one.id }, one.id)))
  find("model").disabled = false
  choose(known[0].id)
}

function choose(id) {
  model = known.find((one) => one.id === id)
  document.title = `${model.id} · detr-zoo`
  find("model-facts").textContent = `${counted(model.label_map.length, "class")} · ${model.runtime}`
  find("file").accept = model.input?.channels || model.input?.scale ? `${PICTURES},.npy` : PICTURES // arrays only where more than RGB is read
  showCard(model)
  if (image) run(image)
}

// ------------------------------------------------------------------------------------------------ a request
/**
 * Asks for what is in an image and shows it; an earlier request is given up.
 *
 * @param withPicture whether the image comes with the answer: always for an address, which the page may not read
 */
async function run(given, withPicture = given.url !== undefined) {
  image = given
  if (!model) return // it is taken up when the server has told its models
  running?.abort()
  const mine = (running = new AbortController())
  settle()
  forget()
  busy(true)
  try {
    if (await answered(given, withPicture, mine)) busy(false)
  } catch (error) {
    if (running !== mine) return
    busy(false)
    speak("") // the problem is an alert, which is spoken at once
    find("results").hidden = true
    report(error, () => run(given))
  }
}

/** Whether it came to an end: not, where another request has taken its place. */
async function answered(given, withPicture, mine) {
  const isOld = () => running !== mine
  const alt = given.name ? `The image ${given.name}` : "The image at the address"
  if (!withPicture) withPicture = await picture.mayBeTurned(given.file)
  if (!withPicture) withPicture = !(await picture.showImage(given.file, alt)) // the server reads more formats
  if (isOld()) return false
  if (withPicture) picture.hideImage()
  // all scores, so that the slider needs no request; but segments come of the threshold: theirs is the model's
  const options = { model: model.id, ...(model.kind === "panoptic" ? {} : { threshold: 0 }), ...(withPicture ? { picture: true } : {}) }
  const answer = await detect(given, options, mine.signal)
  if (isOld()) return false
  if (withPicture) await picture.showImage(answer.picture, alt)
  else if (!picture.isSized(answer)) { // the browser has not turned it as the server has
    run(given, true)
    return false
  }
  await picture.takeAnswer(answer)
  if (isOld()) return false
  take(answer, model, given)
  return true
}

function busy(is) {
  find("stage").setAttribute("aria-busy", is)
  if (is) speak("Detecting…")
}

// ------------------------------------------------------------------------------------------------ errors
function report(error, repeat) {
  const problem = error instanceof Problem ? error
    : new Problem(0, "The page cannot show the answer", `${error.message}. Reload the page; if it happens again, the page has a fault.`)
  again = repeat
  if (problem.status === 401) return askKey()
  find("problem-title").textContent = problem.title
  find("problem-detail").textContent = problem.message
  find("again").hidden = !problem.mayPass
  find("problem").hidden = false
}

function settle() {
  find("problem").hidden = true
  find("key-form").hidden = true
}

function askKey() {
  find("key-why").textContent = hasKey()
    ? "That key is not known here. Enter another that the server's operator gave you."
    : "Enter one that the server's operator gave you. It is kept until this page is closed."
  find("key-form").hidden = false
  find("key").value = ""
  find("key").focus()
}

find("again").addEventListener("click", () => again())
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault()
  useKey(find("key").value)
  again()
})

// ------------------------------------------------------------------------------------------------ ways to give an image
const runFile = (file, isPasted = false) => run({ file, name: file.name || "image.png", isPasted })

find("model").addEventListener("change", (event) => choose(event.target.value))
find("empty").addEventListener("click", () => find("file").click())
find("file").addEventListener("change", (event) => {
  if (event.target.files[0]) runFile(event.target.files[0])
  event.target.value = "" // the same file may be chosen again
})
find("url-form").addEventListener("submit", (event) => {
  event.preventDefault()
  const given = find("url").value.trim()
  run({ url: /^[a-z][a-z\d+.-]*:/i.test(given) ? given : `https://${given}` })
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
  else if (url) run({ url })
})

start()
