// Names, classes and errors come from models, images and servers: they are set as text, never as markup.

export const find = (id) => document.getElementById(id)

/** An element with attributes and children; a child that is text stays text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  element.append(...children)
  return element
}

export function drawn(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  return element
}

export const counted = (number, one) => `${number.toLocaleString("en")} ${number === 1 ? one : one.endsWith("s") ? `${one}es` : `${one}s`}`

const SLOW_TO_SPEAK = 350 // ms without a change before a screen reader hears of it, as a slider makes many
let speaking
/** What a screen reader is to say. */
export function speak(words) {
  clearTimeout(speaking)
  speaking = setTimeout(() => { find("live").textContent = words }, SLOW_TO_SPEAK)
}
