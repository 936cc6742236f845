// Measures a bundle's ONNX files with onnxruntime-web, in a page or in node: the same steps as the native runner, and
// the same result. Times are taken in blocks, since a browser's clock is coarse.

const DIGITS = 4

export function tensors(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const size = Number(view.getBigUint64(0, true))
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + size)))
  const found = {}
  for (const [name, entry] of Object.entries(head)) {
    if (name === '__metadata__') continue
    const [low, high] = entry.data_offsets
    const part = bytes.slice(8 + size + low, 8 + size + high)
    const kinds = { F32: Float32Array, U8: Uint8Array, I64: BigInt64Array }
    found[name] = { shape: entry.shape, data: new kinds[entry.dtype](part.buffer) }
  }
  return found
}

function feed(ort, file, images, index, shape) {
  const [channels, height, width] = shape
  const area = height * width
  const start = index * channels * area
  if (file.fed === 'bytes') {
    const laid = new Uint8Array(channels * area)
    for (let c = 0; c < channels; c++)
      for (let i = 0; i < area; i++) laid[i * channels + c] = images[start + c * area + i]
    return new ort.Tensor('uint8', laid, [1, height, width, channels])
  }
  const last = file.fed === 'channels-last'
  const laid = new Float32Array(channels * area)
  for (let c = 0; c < channels; c++)
    for (let i = 0; i < area; i++) {
      const value = (images[start + c * area + i] / 255 - file.mean[c]) / file.std[c]
      laid[last ? i * channels + c : c * area + i] = value
    }
  return new ort.Tensor('float32', laid, last ? [1, height, width, channels] : [1, channels, height, width])
}

const largest = values => values.reduce((best, value, i) => (value > values[best] ? i : best), 0)

function reference() {
  let value = 1
  for (let i = 0; i < 200000; i++) value = (Math.imul(value, 1103515245) + 12345) & 0x7fffffff
  return value
}

function base64(floats) {
  const bytes = new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength)
  let text = ''
  for (const byte of bytes) text += String.fromCharCode(byte)
  return btoa(text)
}

// The smallest step of the clock, in milliseconds.
function tick() {
  let before = performance.now()
  let least = Infinity
  for (let i = 0; i < 20000; i++) {
    const now = performance.now()
    if (now > before) least = Math.min(least, now - before)
    before = now
  }
  return Number.isFinite(least) ? least : 1
}

async function look(ort, io, manifest, file, threads) {
  const started = performance.now()
  const bytes = await io.read(file.path)
  const sha256 = await io.digest(bytes)
  const options = { executionProviders: ['wasm'], graphOptimizationLevel: 'all' }
  let before = performance.now()
  const session = await ort.InferenceSession.create(bytes, options)
  const first = performance.now() - before
  const [input, output] = [session.inputNames[0], session.outputNames[0]]
  const call = async tensor => (await session.run({ [input]: tensor }))[output].data
  const images = await io.read('slice/images.u8')
  const shape = manifest.slice.shape
  before = performance.now()
  await call(feed(ort, file, images, 0, shape))
  const firstCall = performance.now() - before
  let golden = null
  if (file.golden) {
    const held = tensors(await io.read(file.golden.entry))
    const given = []
    for (let i = 0; i < file.golden.count; i++)
      given.push(...(await call(feed(ort, file, held.images.data, i, shape))))
    golden = base64(Float32Array.from(given))
  }
  let answers = ''
  let right = 0
  for (let i = 0; i < manifest.slice.count; i++) {
    const answer = largest(await call(feed(ort, file, images, i, shape)))
    answers += answer.toString(16).padStart(DIGITS, '0')
    if (answer === parseInt(manifest.slice.labels.slice(i * DIGITS, (i + 1) * DIGITS), 16)) right++
  }
  before = performance.now()
  const again = await ort.InferenceSession.create(bytes, options)
  const second = performance.now() - before
  await again.release()
  const row = {
    target: file.target, file: file.name, error: null, missing: false, latency: null, sha256,
    golden_answers: golden, answers, load_ms: { first, again: second }, first_call_ms: firstCall,
    peak_memory_bytes: null, seconds: (performance.now() - started) / 1000,
    runtime: { name: 'onnxruntime-web', version: ort.env.versions.web ?? ort.env.versions.common, provider: 'wasm' },
    accuracy: { top1: right / manifest.slice.count, n: manifest.slice.count },
  }
  return { row, session, call, image: feed(ort, file, images, 0, shape) }
}

// In place, every order equally likely.
function shuffle(list) {
  for (let last = list.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1))
    ;[list[last], list[other]] = [list[other], list[last]]
  }
}

// Each file in turn, in blocks of calls that last at least twenty steps of the clock, in an order drawn anew each time: what
// ran before leaves its own in the caches, and would always slow the same one.
async function time(looked, mode, step) {
  const blocks = []
  const plans = []
  for (const { call, image } of looked) {
    for (let i = 0; i < 5; i++) await call(image)
    let calls = 1
    for (;;) {
      const before = performance.now()
      for (let i = 0; i < calls; i++) await call(image)
      if (performance.now() - before >= 20 * step || calls >= 4096) break
      calls *= 2
    }
    plans.push({ calls, times: [], count: 0, busy: 0 })
  }
  const least = Math.ceil(mode.calls / mode.blocks)
  const order = plans.map((_, i) => i)
  for (let block = 0; block < mode.blocks; block++) {
    const started = performance.now()
    const references = []
    plans.forEach(plan => { plan.times.push([]); plan.inBlock = 0 })
    do {
      const before = performance.now()
      reference()
      references.push(performance.now() - before)
      shuffle(order)
      for (const i of order) {
        const plan = plans[i]
        const { call, image } = looked[i]
        const from = performance.now()
        for (let c = 0; c < plan.calls; c++) await call(image)
        const taken = performance.now() - from
        plan.count += plan.calls
        plan.inBlock += plan.calls
        plan.busy += taken
        if (plan.times[block].length < 200) plan.times[block].push(Math.max(1, Math.floor((1e6 * taken) / plan.calls)))
      }
    } while (performance.now() - started < (1000 * mode.seconds * looked.length) / mode.blocks ||
             plans.some(plan => plan.inBlock < least))
    references.sort((a, b) => a - b)
    blocks.push({
      wall_ms: performance.now() - started, cpu_ms: null, reference_wall_ms: references.reduce((a, b) => a + b),
      reference_cpu_ms: null, reference_ms: references[references.length >> 1], stolen_ticks: null, clock_khz: null,
      temperature_c: null,
    })
  }
  looked.forEach(({ row }, i) => {
    const plan = plans[i]
    row.latency = { times_ns: plan.times, calls: plan.count, busy_ns: Math.ceil(1e6 * plan.busy), per_timing: plan.calls }
  })
  return blocks
}

// io: read(entry) -> Uint8Array, digest(bytes) -> hexadecimal SHA-256, device() -> what is told of it, say(text).
export async function measure(ort, io, request) {
  const manifest = JSON.parse(new TextDecoder().decode(await io.read('manifest.json')))
  ort.env.wasm.numThreads = request.threads
  const looked = []
  const rows = []
  for (const file of manifest.files) {
    if (request.only.length && !request.only.includes(file.name)) continue
    if (file.target !== 'onnx') {
      const error = `files for ${file.target} have no runtime in a browser, which runs ONNX alone`
      rows.push({ target: file.target, file: file.name, error, missing: true, latency: null })
      continue
    }
    io.say(`looking at ${file.name}`)
    try {
      const found = await look(ort, io, manifest, file, request.threads)
      looked.push(found)
      rows.push(found.row)
    } catch (error) {
      rows.push({ target: file.target, file: file.name, error: `its runtime refused it: ${error}`.slice(0, 300),
                  missing: false, latency: null })
    }
  }
  const groups = []
  if (looked.length) {
    io.say('timing')
    groups.push({ target: 'onnx', blocks: await time(looked, request.mode, tick()) })
  }
  return {
    schema: 1, kind: 'device', bundle_sha256: request.bundle, runner: 'web 1', finished: true, mode: request.mode,
    device: { ...(await io.device()), emulated: 'wasm' }, governor: null, threads: request.threads, pinned: [], groups, rows,
  }
}
