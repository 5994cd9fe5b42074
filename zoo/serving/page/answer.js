// An answer of the server as the items that the page lists and draws, and which of them are shown.
import { classColour, shade } from "./colours.js"

/**
 * @param answer the document of `zoo predict --json`: boxes in pixels of the upright image
 * @returns {{objects: Item[], segments: Item[] | null}} best first; segments of a panoptic model
 *
 * Item: {number, name, score, colour: [r, g, b], box: [x0, y0, x1, y1] | null, mask: RLE | null, id, area}
 */
export function itemsOf(answer) {
  const classes = new Map(answer.label_map.classes.map((row) => [row.source_id, row]))
  const seen = new Map() // source id -> instances so far
  const item = (found, number, shaded) => {
    const row = classes.get(found.source_id)
    const before = seen.get(found.source_id) ?? 0
    seen.set(found.source_id, before + 1)
    const own = row?.color ?? classColour(row?.head_index ?? found.source_id)
    return {
      number,
      name: found.label,
      score: found.score,
      colour: shaded ? shade(own, before) : own,
      box: found.box_xyxy ?? null,
      mask: found.mask ?? null,
      id: found.id,
      area: found.area,
    }
  }
  const objects = answer.detections.map((found, number) => item(found, number, Boolean(found.mask)))
  seen.clear()
  const segments = answer.panoptic
    ? answer.panoptic.segments.map((found, number) => item(found, number, found.is_thing)).sort((a, b) => b.score - a.score)
    : null
  return { objects, segments }
}

/** From which score a class is shown by default; thresholds are `{default, classes: {name: number}}`. */
export const ownThreshold = (thresholds, name) => thresholds.classes[name] ?? thresholds.default

/** Whether a score reaches the threshold: the one that was chosen, or else the model's own. */
export const reaches = (item, chosen, own) => item.score >= (chosen ?? ownThreshold(own, item.name))

/** Those that reach the threshold and are of a chosen class; no class chosen is every class. */
export const shownOf = (items, chosen, own, classes) =>
  items.filter((item) => reaches(item, chosen, own) && (!classes.size || classes.has(item.name)))
