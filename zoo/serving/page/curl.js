// The request that gives what the page shows, as a line for a POSIX shell.

/** As Python's shlex.quote. */
export const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`)

/** A file's name as curl's -F takes it: some characters have a meaning there. */
function fileField(name) {
  const path = name === "-" ? "./-" : name
  return /[;,"\\]|^\s|\s$/.test(path) ? `file=@"${path.replace(/["\\]/g, "\\$&")}"` : `file=@${path}`
}

/** A text field; -F would read a file for `@` and `<`, and options after `;`. */
const textField = (name, value) =>
  `${/^\w/.test(value) && !value.includes(";") ? "-F" : "--form-string"} ${quoted(`${name}=${value}`)}`

/**
 * @param {string} url of the detect endpoint
 * @param image as of `detect`
 * @param {{model: string, threshold?: number, classes?: string[]}} options
 */
export function curlLine(url, image, options, hasKey) {
  const parts = [`curl -sS ${quoted(url)}`]
  if (hasKey) parts.push('-H "Authorization: Bearer $ZOO_API_KEY"')
  if (image.url !== undefined) {
    parts.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify({ image: image.url, ...options }))}`)
  } else {
    parts.push(`-F ${quoted(fileField(image.name))}`)
    for (const [name, value] of Object.entries(options)) for (const one of [value].flat()) parts.push(textField(name, String(one)))
  }
  return parts.join(" \\\n  ")
}
