// The model's card.
import { counted, find, make } from "./elements.js"

const METRICS = [
  ["AP", "AP"], ["AP50", "AP50"], ["AP75", "AP75"], ["APs", "AP, small"], ["APm", "AP, medium"], ["APl", "AP, large"],
  ["segm_AP", "AP of masks"], ["PQ", "PQ"], ["SQ", "SQ"], ["RQ", "RQ"],
]

export function showCard(model) {
  const card = find("card")
  card.replaceChildren(make("h2", { id: "card-title" }, model.id), facts(model), scores(model.scores ?? {}), labels(model.label_map))
  card.hidden = false
}

function facts(model) {
  const list = make("dl")
  const rows = [
    ["Version", model.version],
    ["Licence", model.licence],
    ["Detects", { detection: "boxes", instance: "boxes and masks", panoptic: "boxes, masks and panoptic segments" }[model.kind]],
    ["Input", inputWords(model.input)],
    ["Runtime", model.runtime],
    ["Hash of the weights", model.hash && make("code", { class: "hash" }, model.hash)],
  ]
  for (const [name, value] of rows) {
    if (value === undefined || value === null || value === "") continue
    list.append(make("div", {}, make("dt", {}, name), make("dd", {}, value instanceof Node ? value : String(value))))
  }
  return list
}

function inputWords(input) {
  if (!input) return null
  const [first, second] = input.size
  const channels = (input.channels ?? 3) === 3 ? "" : `, ${input.channels} channels`
  const tiles = input.tiles ? `, in tiles of ${input.tiles.size[1]} × ${input.tiles.size[0]}` : ""
  return (input.resize === "stretch" ? `${second} × ${first} pixels` : `shorter side ${first}, longer at most ${second} pixels`) + channels + tiles
}

const shown = (value, unit) => (value < 0 ? "–" : (unit === "percent" ? value / 100 : value).toFixed(3))

function cell(scores, metric) {
  const value = scores?.[metric]
  if (value === undefined || value === null) return make("td", { class: "number soft" }, "–")
  const td = make("td", { class: "number" }, shown(value, scores.unit))
  const [low, high] = scores.interval?.[metric] ?? []
  if (low !== undefined && low !== null && high !== null) {
    td.append(" ", make("small", { class: "soft" }, `[${shown(low, scores.unit)}, ${shown(high, scores.unit)}]`))
  }
  return td
}

function scores({ published, measured }) {
  const columns = [["Published", published], ...[measured ?? []].flat().map((one) => ["Measured", one])].filter(([, one]) => one)
  if (!columns.length) return make("p", { class: "soft" }, "No score is published or measured for these weights.")
  const head = make("tr", {}, make("th", { scope: "col" }, "Score"))
  for (const [name, one] of columns) {
    const where = [one.dataset, one.split].filter(Boolean).join(" ")
    head.append(make("th", { scope: "col", class: "number" }, name, make("br"), make("small", { class: "soft" }, where)))
  }
  const body = make("tbody")
  for (const [metric, name] of METRICS) {
    if (columns.every(([, one]) => (one[metric] ?? null) === null)) continue
    body.append(make("tr", {}, make("th", { scope: "row" }, name), ...columns.map(([, one]) => cell(one, metric))))
  }
  const hasInterval = columns.some(([, one]) => one.interval)
  const frame = make("div", { class: "scroll" }, make("table", { class: "scores" }, make("thead", {}, head), body))
  if (hasInterval) frame.append(make("p", { class: "soft" }, "In brackets: the 95 % interval."))
  return frame
}

function labels(names) {
  return make("details", {}, make("summary", {}, `Label map: ${counted(names.length, "class")}`), make("p", { class: "labels" }, names.join(", ")))
}
