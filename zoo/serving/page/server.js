// What the page asks of its server. Addresses are relative, so that it also works behind a prefix.

let key = "" // kept in memory only

export const useKey = (given) => { key = given.trim() }
export const hasKey = () => key !== ""
export const address = (path) => new URL(path, document.baseURI).href

/** Why there is no answer, in words for a person; `mayPass`: whether the same may succeed another time. */
export class Problem extends Error {
  constructor(status, title, message, mayPass = true) {
    super(message)
    Object.assign(this, { status, title, mayPass })
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) }
  let answer
  try {
    answer = await fetch(address(path), { ...options, headers })
  } catch (error) {
    if (error.name === "AbortError") throw error
    throw new Problem(0, "The server does not answer", "It may have been stopped, or the connection is lost.")
  }
  const document = await answer.json().catch(() => null)
  if (answer.ok && document) return document
  throw problemOf(answer, document)
}

function problemOf(answer, document) {
  const { status } = answer, wait = answer.headers.get("Retry-After")
  const kind = document?.type?.split(":").at(-1) ?? ""
  const isBusy = status === 429 || status === 503
  const title = kind.startsWith("image") || kind === "body-bytes" ? "This image cannot be used"
    : isBusy ? "The server is busy"
    : status >= 500 ? "The server has failed"
    : "The request was refused"
  const detail = document?.detail ?? `It answered with status ${status}`
  const way = isBusy && wait ? `Wait ${wait} s and try again.` : ""
  const mayPass = isBusy || status >= 500 || status === 408 || ["image-fetch", "image-slow"].includes(kind)
  const begun = /^\w+:/.test(detail) ? detail : detail[0].toUpperCase() + detail.slice(1)
  return new Problem(status, title, `${begun}${/[.!?]$/.test(detail) ? "" : "."} ${way}`.trim(), mayPass)
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
