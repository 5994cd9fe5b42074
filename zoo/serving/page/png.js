// Samples of a PNG as they were written. A canvas may change them: by colour management, or against fingerprinting.

const PREDICTED = [ // a sample from those to the left, above, and above left; PNG specification, section 9
  () => 0,
  (left) => left,
  (left, above) => above,
  (left, above) => (left + above) >> 1,
  (left, above, corner) => {
    const guess = left + above - corner
    const [a, b, c] = [Math.abs(guess - left), Math.abs(guess - above), Math.abs(guess - corner)]
    return a <= b && a <= c ? left : b <= c ? above : corner
  },
]

/**
 * @param {Uint8Array} bytes of a PNG with three channels of 8 bits, not interlaced, as the server writes id maps
 * @returns {Promise<{width: number, height: number, samples: Uint8Array}>} line by line, red, green and blue
 */
export async function readPng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  const width = view.getUint32(16), height = view.getUint32(20), size = 3 * width
  if (view.getUint32(24) !== 0x08020000 || view.getUint8(28)) throw new Error("the map of segments is no RGB PNG of 8 bits")
  const lines = await inflated(bytes, view)
  const samples = new Uint8Array(height * size)
  for (let y = 0; y < height; y++) {
    const predicted = PREDICTED[lines[y * (size + 1)]]
    for (let x = 0; x < size; x++) {
      const at = y * size + x
      const left = x < 3 ? 0 : samples[at - 3], above = y ? samples[at - size] : 0, corner = x < 3 || !y ? 0 : samples[at - size - 3]
      samples[at] = lines[y * (size + 1) + 1 + x] + predicted(left, above, corner)
    }
  }
  return { width, height, samples }
}

async function inflated(bytes, view) {
  const parts = []
  for (let at = 8; at < bytes.length; at += 12 + view.getUint32(at)) {
    if (view.getUint32(at + 4) === 0x49444154) parts.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at))) // IDAT
  }
  return new Uint8Array(await new Response(new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer())
}
