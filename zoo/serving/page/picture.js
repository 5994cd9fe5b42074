// The image with what was found on it. Boxes are an SVG in pixels of the image, stretched over it, so they are at
// their places at any size and pixel density; names are HTML, which keeps its size.
import { css, dark } from "./colours.js"
import { drawn, find, make } from "./elements.js"
import { gridOf, idsOf, ownersByIds, ownersByMasks, paint } from "./masks.js"

const stage = find("stage"), image = find("image"), masks = find("masks"), boxes = find("boxes"), names = find("names")
const LEGIBLE = 480 // a smaller image is enlarged to this longer side
let answer = null // what is drawn on the image, with its grid and, of a panoptic model, its ids
let items = [], strong = null, owners = null, address = null

/** Shows an image without anything on it; false if the browser cannot read it. */
export async function showImage(source, alt) {
  const given = source instanceof Blob ? URL.createObjectURL(source) : source
  const next = new Image()
  next.src = given
  try {
    await next.decode()
  } catch {
    if (source instanceof Blob) URL.revokeObjectURL(given)
    return false
  }
  clear()
  if (address) URL.revokeObjectURL(address)
  address = source instanceof Blob ? given : null
  image.src = given
  image.alt = alt
  const { naturalWidth: width, naturalHeight: height } = next
  const enlarged = Math.max(1, LEGIBLE / Math.max(width, height))
  find("picture").style.setProperty("--ratio", width / height)
  find("picture").style.setProperty("--wide", width * enlarged)
  find("empty").hidden = true
  find("picture").hidden = false
  return true
}

/** Takes away the image. */
export function hideImage() {
  clear()
  image.removeAttribute("src")
  find("empty").hidden = false
  find("picture").hidden = true
}

/** Whether a file has a tag of how to turn it that the server heeds and not every browser: EXIF of PNG and WebP, XMP. */
export async function mayBeTurned(file) {
  return /eXIf|EXIF|tiff:Orientation/.test(new TextDecoder("latin1").decode(await file.arrayBuffer()))
}

/** Whether the browser reads the image as the server did: turned upright, and of its size. */
export const isSized = ({ width, height }) => image.naturalWidth === width && image.naturalHeight === height

/** What is drawn from now on belongs to this answer. */
export async function takeAnswer(given) {
  const grid = gridOf(given.width, given.height)
  const ids = given.panoptic?.png ? await idsOf(given.panoptic.png, grid) : null
  answer = { width: given.width, height: given.height, grid, ids }
  boxes.setAttribute("viewBox", `0 0 ${given.width} ${given.height}`)
}

function clear() {
  answer = owners = strong = null
  items = []
  boxes.replaceChildren()
  names.replaceChildren()
  masks.width = masks.height = 0
}

/** Draws the items, best first, in place of what was drawn before. */
export function draw(shown) {
  items = shown
  if (!items.some((item) => item.number === strong)) strong = null
  const masked = items.filter((item) => item.mask)
  owners = items[0] && !items[0].box && answer.ids ? ownersByIds(items, answer.ids) : masked.length ? ownersByMasks(masked, answer.grid) : null
  tint()
  boxes.replaceChildren(...items.filter((item) => item.box).reverse().map(boxOf))
  names.replaceChildren(...items.map(nameOf))
  mark()
  placeNames()
}

function tint() {
  masks.hidden = !owners
  if (owners) paint(masks, owners, answer.grid, items, strong)
}

function boxOf(item) {
  const [x0, y0, x1, y1] = item.box
  const place = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 }
  const group = drawn("g", { "data-number": item.number })
  const line = drawn("rect", { ...place, class: "line" })
  line.style.stroke = css(item.colour)
  group.append(drawn("rect", { ...place, class: "rim" }), line)
  return group
}

function nameOf(item) {
  const name = make("span", { "data-number": item.number }, `${item.name} ${item.score.toFixed(2)}`)
  name.style.background = css(dark(item.colour))
  name.style.borderColor = css(item.colour)
  return name
}

/** Marks one item of those that are drawn; null marks none. */
export function highlight(number) {
  const next = items.some((item) => item.number === number) ? number : null
  if (next === strong) return
  strong = next
  tint()
  mark()
  placeNames()
}

function mark() {
  for (const element of [...boxes.children, ...names.children]) {
    element.classList.toggle("strong", Number(element.dataset.number) === strong)
    element.classList.toggle("back", strong !== null && Number(element.dataset.number) !== strong)
  }
}

// ------------------------------------------------------------------------------------------------ names
/** Writes every name that has room, the marked one first and then the best; names without room are left out. */
function placeNames() {
  if (!answer) return
  const width = boxes.clientWidth, height = boxes.clientHeight, taken = []
  const elements = [...names.children]
  for (const element of elements) element.hidden = false // what is hidden has no size
  const sizes = elements.map((element) => [element.offsetWidth, element.offsetHeight])
  const order = elements.map((_, index) => index).sort((a, b) => (items[b].number === strong) - (items[a].number === strong))
  for (const index of order) {
    const [wide, high] = sizes[index]
    const within = ([x, y]) => [Math.max(0, Math.min(x, width - wide)), Math.max(0, Math.min(y, height - high))]
    const place = placesOf(items[index], wide, high, width, height).map(within)
      .find(([x, y]) => !taken.some((t) => x < t[2] && t[0] < x + wide && y < t[3] && t[1] < y + high))
    elements[index].hidden = !place
    if (!place) continue
    taken.push([place[0], place[1], place[0] + wide, place[1] + high])
    elements[index].style.translate = `${place[0]}px ${place[1]}px`
  }
}

function placesOf(item, wide, high, width, height) {
  if (!item.box) {
    const [x, y] = middleOf(item)
    return [[x * width - wide / 2, y * height - high / 2]]
  }
  const left = (item.box[0] / answer.width) * width, top = (item.box[1] / answer.height) * height
  const right = (item.box[2] / answer.width) * width, bottom = (item.box[3] / answer.height) * height
  const above = top - high, edge = left - 1
  return [...(above >= 0 ? [[edge, above]] : []), [edge, top], [right - wide + 1, top], [edge, bottom - high], [right - wide + 1, bottom - high]]
}

/** Of a segment the middle of its longest run down a column, as shares of the image: that lies inside. */
function middleOf(item) {
  if (item.middle) return item.middle
  const { width, height } = answer.grid
  let best = 0, middle = [0.5, 0.5]
  for (let x = 0; x < width; x++) {
    for (let y = 0, run = 0; y < height; y++) {
      run = answer.ids[x * height + y] === item.id ? run + 1 : 0
      if (run > best) {
        best = run
        middle = [(x + 0.5) / width, (y + 0.5 - run / 2) / height]
      }
    }
  }
  return (item.middle = middle)
}

// ------------------------------------------------------------------------------------------------ pointer
/** `told` is called with the number of the item under the pointer, null where there is none. */
export function onPointed(told) {
  stage.addEventListener("pointermove", (event) => told(itemAt(event)))
  stage.addEventListener("pointerleave", () => told(null))
}

/** The smallest box there, or else the mask. */
function itemAt(event) {
  if (!answer) return null
  const frame = boxes.getBoundingClientRect()
  const x = (event.clientX - frame.left) / frame.width, y = (event.clientY - frame.top) / frame.height
  if (!(x >= 0 && x < 1 && y >= 0 && y < 1)) return null
  const px = x * answer.width, py = y * answer.height
  const size = ({ box }) => (box[2] - box[0]) * (box[3] - box[1])
  const [smallest] = items
    .filter(({ box }) => box && box[0] <= px && px <= box[2] && box[1] <= py && py <= box[3])
    .sort((a, b) => size(a) - size(b))
  if (smallest || !owners) return smallest?.number ?? null
  const { width, height } = answer.grid
  const owner = owners[Math.floor(x * width) * height + Math.floor(y * height)]
  return owner ? owner - 1 : null
}

new ResizeObserver(placeNames).observe(boxes)
