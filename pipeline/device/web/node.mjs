// The page's work without a browser: node node.mjs URL RUNTIME-FOLDER
import { createHash } from 'node:crypto'
import os from 'node:os'
import { pathToFileURL } from 'node:url'
import { measure } from './bench.mjs'

const [url, runtime] = process.argv.slice(2)
const post = (where, body) => fetch(url + where, { method: 'POST', body })
const io = {
  read: async entry => {
    const got = await fetch(`${url}entry/${entry}`)
    if (!got.ok) throw new Error(`${entry}: ${got.status}`)
    return new Uint8Array(await got.arrayBuffer())
  },
  digest: async bytes => createHash('sha256').update(bytes).digest('hex'),
  device: async () => ({
    name: os.hostname(), model: '', os: `${os.type()} ${os.release()}`, kernel: os.release(), machine: 'wasm',
    cpu: `node ${process.version} on ${os.cpus()[0]?.model ?? os.arch()}`, memory_bytes: os.totalmem(),
    cores: os.cpus().map((_, id) => ({ id, max_khz: null, part: null })),
  }),
  say: () => {},
}
try {
  const ort = await import(pathToFileURL(`${runtime}/ort.node.min.mjs`).href)
  await post('result', JSON.stringify(await measure(ort, io, await (await fetch(`${url}request.json`)).json())))
} catch (error) {
  await post('error', String(error?.stack ?? error).slice(0, 500))
  process.exitCode = 1
}
