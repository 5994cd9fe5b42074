// Masks and segments as one map of owners: each pixel belongs to one item, or to none.
import { light } from "./colours.js"
import { readPng } from "./png.js"

const LONGEST = 1600 // pixels of the map's longer side; a larger image is sampled
// opacity of 255 inside and at the outline
const USUAL = [115, 255], STRONG = [150, 255], BACK = [25, 70]

/** The grid that an image is sampled on. Its pixels lie column by column, as in COCO's run lengths. */
export function gridOf(width, height) {
  const scale = Math.min(1, LONGEST / Math.max(width, height))
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) }
}

/** COCO's compressed run lengths: six bits a character, five of them data; from the third run on, differences. */
export function countsOf(text) {
  const counts = []
  for (let at = 0; at < text.length;) {
    let value = 0, shift = 0, bits
    do {
      bits = text.charCodeAt(at++) - 48
      value |= (bits & 31) << shift
      shift += 5
    } while (bits & 32)
    if (bits & 16) value |= -1 << shift
    counts.push(counts.length > 2 ? value + counts.at(-2) : value)
  }
  return counts
}

/** [start, end, start, end, ...] of the runs of a mask on the grid. */
export function runsOf(mask, grid) {
  const [height, width] = mask.size
  const columnOf = new Int32Array(width).fill(-1) // of the grid, which samples the middle of each of its pixels
  for (let x = 0; x < grid.width; x++) columnOf[Math.floor(((x + 0.5) * width) / grid.width)] = x
  const rowFrom = (y) => Math.ceil((y * grid.height) / height - 0.5)
  const runs = []
  let at = 0, inside = false
  for (const count of countsOf(mask.counts)) {
    for (let start = at, end = at + count; inside && start < end;) {
      const x = Math.floor(start / height), stop = Math.min(end, (x + 1) * height)
      const from = rowFrom(start - x * height), to = rowFrom(stop - x * height)
      if (columnOf[x] >= 0 && from < to) runs.push(columnOf[x] * grid.height + from, columnOf[x] * grid.height + to)
      start = stop
    }
    at += count
    inside = !inside
  }
  return Int32Array.from(runs)
}

/** Owners by masks: of several the best item has the pixel. 0 is none, else the item's number + 1. */
export function ownersByMasks(items, grid) {
  const owners = new Int32Array(grid.width * grid.height)
  for (const item of [...items].reverse()) {
    item.runs ??= runsOf(item.mask, grid)
    for (let i = 0; i < item.runs.length; i += 2) owners.fill(item.number + 1, item.runs[i], item.runs[i + 1])
  }
  return owners
}

/** The ids of a panoptic PNG on the grid: red + 256 green + 65536 blue. */
export async function idsOf(base64, grid) {
  const { width, height, samples } = await readPng(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)))
  const ids = new Int32Array(grid.width * grid.height)
  for (let x = 0; x < grid.width; x++) {
    const column = Math.floor(((x + 0.5) * width) / grid.width)
    for (let y = 0; y < grid.height; y++) {
      const at = 3 * (Math.floor(((y + 0.5) * height) / grid.height) * width + column)
      ids[x * grid.height + y] = samples[at] + 256 * samples[at + 1] + 65536 * samples[at + 2]
    }
  }
  return ids
}

/** Owners by a map of ids: the shown segments' pixels. */
export function ownersByIds(items, ids) {
  const ownerOf = new Map(items.map((item) => [item.id, item.number + 1]))
  return ids.map((id) => ownerOf.get(id) ?? 0)
}

/** Paints every owner's pixels in its colour, its outline opaque; with `strong` the others step back. */
export function paint(canvas, owners, grid, items, strong) {
  const { width, height } = grid
  canvas.width = width
  canvas.height = height
  const image = new ImageData(width, height)
  const pixels = new Uint32Array(image.data.buffer) // alpha, blue, green, red
  const colours = []
  for (const { number, colour } of items) {
    const pack = ([red, green, blue]) => red | (green << 8) | (blue << 16)
    colours[number + 1] = [pack(colour), pack(light(colour))]
  }
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const at = x * height + y, owner = owners[at]
      if (!owner) continue
      const isEdge =
        (x > 0 && owners[at - height] !== owner) || (x + 1 < width && owners[at + height] !== owner) ||
        (y > 0 && owners[at - 1] !== owner) || (y + 1 < height && owners[at + 1] !== owner)
      const [inside, edge] = strong === null ? USUAL : owner === strong + 1 ? STRONG : BACK
      pixels[y * width + x] = isEdge ? colours[owner][1] | (edge << 24) : colours[owner][0] | (inside << 24)
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0)
}
