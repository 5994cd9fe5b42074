// What the page asks of its server. Addresses are relative, so that it also works behind a prefix.

let key = "" // kept in memory only

export const useKey = (given) => { key = given.trim() }
export const hasKey = () => key !== ""
export const address = (path) => new URL(path, document.baseURI).href

/** An answer that is none, in words for a person. */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail)
    Object.assign(this, { status, title, detail })
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) }
  let answer
  try {
    answer = await fetch(address(path), { ...options, headers })
  } catch (error) {
    if (error.name === "AbortError") throw error
    throw new Problem(0, "The server does not answer", "It may have been stopped, or the connection was lost. Start it again or check the connection, then try again.")
  }
  const document = await answer.json().catch(() => null)
  if (answer.ok && document) return document
  throw problemOf(answer, document)
}

function problemOf(answer, document) {
  const wait = answer.headers.get("Retry-After")
  const ways = {
    401: "",
    413: "Take a smaller image.",
    415: "Take a JPEG, PNG, WebP or TIFF image.",
    429: wait ? `Try again in ${wait} s.` : "Try again in a moment.",
    503: wait ? `Try again in ${wait} s.` : "Try again in a moment.",
  }
  const detail = document?.detail ?? `The server answered with status ${answer.status}.`
  const sentence = /[.!?]$/.test(detail) ? detail : `${detail}.`
  return new Problem(answer.status, document?.title ?? "The request failed", `${sentence} ${ways[answer.status] ?? ""}`.trim())
}

export const models = async () => (await ask("v1/models")).data

/**
 * Detections of an image. Without a threshold the model's own holds.
 *
 * @param {{file?: Blob, name?: string, url?: string}} image a file and its name, or an address
 * @param {{model: string, threshold?: number, picture?: boolean}} options `picture` asks for the image to come with the answer
 */
export function detect(image, options, signal) {
  if (image.url !== undefined) {
    const body = JSON.stringify({ image: image.url, ...options })
    return ask("v1/detect", { method: "POST", headers: { "Content-Type": "application/json" }, body, signal })
  }
  const body = new FormData()
  body.append("file", image.file, image.name)
  for (const [name, value] of Object.entries(options)) body.append(name, String(value))
  return ask("v1/detect", { method: "POST", body, signal })
}
