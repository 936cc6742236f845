// Answers images with one ONNX file in WebAssembly: node run.mjs RUNTIME-FOLDER FILE KIND SIDES THREADS
// In: images, one after the other, as the file takes them. Out, first and after each image: a count of bytes and so many
// bytes, float32 answers; a negative count is a message's.
import { readFileSync, writeSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const [runtime, path, kind, sides, threads] = process.argv.slice(2)
const shape = JSON.parse(sides)
const MAKERS = { float32: Float32Array, uint8: Uint8Array }
const size = shape.reduce((a, b) => a * b, 1) * MAKERS[kind].BYTES_PER_ELEMENT

function put(bytes, sign = 1) {
  const head = Buffer.alloc(4)
  head.writeInt32LE(sign * bytes.length)
  for (let part of [head, bytes])
    while (part.length) {
      try {
        part = part.subarray(writeSync(1, part))
      } catch (error) {
        if (error.code !== 'EAGAIN') throw error
      }
    }
}

try {
  const ort = await import(pathToFileURL(`${runtime}/ort.node.min.mjs`).href)
  ort.env.wasm.numThreads = Number(threads)
  ort.env.logLevel = 'fatal'
  const options = { executionProviders: ['wasm'], graphOptimizationLevel: 'all', logSeverityLevel: 4 }
  const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(path)), options)
  put(Buffer.from(ort.env.versions.web ?? ort.env.versions.common))
  let kept = Buffer.alloc(0)
  for await (const part of process.stdin) {
    kept = kept.length ? Buffer.concat([kept, part]) : part
    while (kept.length >= size) {
      const data = new MAKERS[kind](new Uint8Array(kept.subarray(0, size)).buffer)
      kept = kept.subarray(size)
      const given = { [session.inputNames[0]]: new ort.Tensor(kind, data, shape) }
      const answer = (await session.run(given))[session.outputNames[0]].data
      put(Buffer.from(answer.buffer, answer.byteOffset, answer.byteLength))
    }
  }
} catch (error) {
  put(Buffer.from(String(error?.message ?? error).slice(0, 1000)), -1)
  process.exitCode = 1
}
