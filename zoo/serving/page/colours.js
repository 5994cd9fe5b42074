// The colours of the pictures that `zoo predict` paints, so that a class looks the same everywhere.

// of instances of one class, one after the other: what is added to hue and lightness
const SHADES = [[0, 0], [0.045, 0.15], [-0.045, -0.13], [0.085, -0.07], [-0.085, 0.11], [0.02, 0.24], [-0.02, -0.2]]

const between = (low, value, high) => Math.min(Math.max(value, low), high)

/** [red, green, blue] of 0..255 from three numbers of 0..1. */
function rgb(hue, lightness, saturation) {
  const reach = saturation * Math.min(lightness, 1 - lightness)
  return [0, 8, 4].map((turn) => {
    const place = (turn + 12 * hue) % 12
    return Math.round(255 * (lightness - reach * between(-1, Math.min(place - 3, 9 - place), 1)))
  })
}

function hls(colour) {
  const [red, green, blue] = colour.map((value) => value / 255)
  const most = Math.max(red, green, blue), least = Math.min(red, green, blue), range = most - least
  const lightness = (most + least) / 2
  if (!range) return [0, lightness, 0]
  const hue = most === red ? (green - blue) / range : most === green ? 2 + (blue - red) / range : 4 + (red - green) / range
  return [(hue / 6 + 1) % 1, lightness, range / (1 - Math.abs(2 * lightness - 1))]
}

/** Hues step by the golden ratio, so that neighbouring indices of the head stay apart. */
export function classColour(head) {
  return rgb((0.58 + head * 0.6180339887) % 1, [0.55, 0.42, 0.66][Math.floor(head / 7) % 3], 0.85)
}

/** The colour of instance `number` of a class: the first has the class's own, others one beside it. */
export function shade(colour, number) {
  const [turn, lift] = SHADES[number % SHADES.length]
  if (!turn && !lift) return colour
  const [hue, lightness, saturation] = hls(colour)
  return rgb((hue + turn + 1) % 1, between(0.22, lightness + lift, 0.82), saturation)
}

/** Lightened where it is too dark for a line on a photograph. */
export function light(colour) {
  const [hue, lightness, saturation] = hls(colour)
  return rgb(hue, between(0.55, lightness + 0.12, 0.85), saturation)
}

/** Darkened so that white text is read on it. */
export function dark(colour) {
  const [hue, , saturation] = hls(colour)
  return rgb(hue, 0.17, Math.min(saturation, 0.6))
}

export const css = (colour) => `rgb(${colour.join(" ")})`
