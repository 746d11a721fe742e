// A sandbox keeps a running process, a loaded variable and a file across a pause.
//
// The published `e2b` SDK, unmodified. It finds the server through three environment variables:
//
//     E2B_API_KEY, E2B_API_URL, E2B_SANDBOX_URL
//
// Run it with `make demo`, or on its own: `npm install e2b && node demo/main_job.mjs`.

import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Sandbox } from 'e2b'

// Runs inside the sandbox. Nothing of it is ever on disk: the counter lives in this process's memory alone.
const COUNTER = `
const http = require('node:http')

let count = 0
setInterval(() => { count += 1 }, 100)

http.createServer((request, response) => {
  response.setHeader('Content-Type', 'application/json')
  response.end(JSON.stringify({ count, pid: process.pid }))
}).listen(8000, '0.0.0.0')
`

const TICKS_PER_SECOND = 10
const SECONDS_ASLEEP = 3
const DEADLINE_MS = 60_000

const steps = {}
const now = () => performance.now()

async function step(name, work) {
  const started = now()
  const result = await work()
  steps[name] = Math.round((now() - started) * 10) / 10
  console.log(`  ${name.padEnd(34)}${steps[name].toFixed(1).padStart(9)} ms`)
  return result
}

class Failure extends Error {}

function check(condition, otherwise) {
  if (!condition) throw new Failure(otherwise)
}

/** What a client sees on the sandbox's port 8000: the HTTP status, and the body if it answered. */
async function port8000(sandboxId) {
  const answer = await fetch(process.env.E2B_SANDBOX_URL, {
    headers: { 'E2b-Sandbox-Id': sandboxId, 'E2b-Sandbox-Port': '8000' },
    signal: AbortSignal.timeout(DEADLINE_MS),
  })
  const text = await answer.text()
  return { status: answer.status, body: answer.ok ? JSON.parse(text) : text }
}

async function waitForPort8000(sandboxId, atLeast = 0) {
  const deadline = now() + DEADLINE_MS
  for (;;) {
    const { status, body } = await port8000(sandboxId)
    if (status === 200 && body.count >= atLeast) return body
    check(now() < deadline, `port 8000 did not reach count ${atLeast}; last answer: ${status} ${JSON.stringify(body)}`)
    await sleep(50)
  }
}

async function listedState(sandboxId) {
  const pages = Sandbox.list()
  while (pages.hasNext) {
    const found = (await pages.nextItems()).find((sandbox) => sandbox.sandboxId === sandboxId)
    if (found) return found.state
  }
  return undefined
}

/** Attaches to the terminal, types a line and reads until `until` is printed. */
async function typeIntoTerminal(sandbox, pid, line, until) {
  let seen = ''
  let printed
  const found = new Promise((resolve) => { printed = resolve })
  const terminal = await sandbox.pty.connect(pid, {
    timeoutMs: DEADLINE_MS,
    onData: (data) => {
      seen += new TextDecoder().decode(data)
      if (seen.includes(until)) printed(true)
    },
  })
  await sandbox.pty.sendInput(pid, new TextEncoder().encode(`${line}\n`))
  const arrived = await Promise.race([found, sleep(DEADLINE_MS, false, { ref: false })])
  await terminal.disconnect()
  check(arrived, `the terminal never printed '${until}'; it printed ${JSON.stringify(seen)}`)
}

function sdkVersion() {
  const manifest = new URL('../package.json', import.meta.resolve('e2b'))
  return JSON.parse(readFileSync(manifest, 'utf8')).version
}

async function main() {
  for (const name of ['E2B_API_KEY', 'E2B_API_URL', 'E2B_SANDBOX_URL']) {
    check(process.env[name], `environment variable ${name} is not set; see the first lines of this file`)
  }
  console.log(`Node.js ${process.version}, e2b ${sdkVersion()}`)

  let sandbox = await step('create', () => Sandbox.create({ timeoutMs: 300_000 }))
  const { sandboxId } = sandbox
  let before, after, paused, resuming
  try {
    await step('write a file', async () => {
      await sandbox.files.write('/home/user/note.txt', 'written before the pause')
      await sandbox.files.write('/home/user/counter.cjs', COUNTER)
    })

    await step('start the counter on port 8000', async () => {
      await sandbox.commands.run('node /home/user/counter.cjs', { background: true, timeoutMs: 0 })
      await waitForPort8000(sandboxId, 5)
    })

    const terminal = await step('set a variable in a terminal', async () => {
      const opened = await sandbox.pty.create({ rows: 24, cols: 80, timeoutMs: 0, onData: () => {} })
      await opened.disconnect()
      await typeIntoTerminal(sandbox, opened.pid, 'colour=violet; echo set-$((40 + 2))', 'set-42')
      return opened
    })

    before = await waitForPort8000(sandboxId)
    const readBefore = now()

    check(await step('pause', () => sandbox.pause()), 'pause() did not say that it paused the sandbox')
    paused = now()

    const { status } = await port8000(sandboxId)
    check(status === 502, `port 8000 of a paused sandbox answered ${status}, expected 502`)
    const state = await listedState(sandboxId)
    check(state === 'paused', `the listing says ${state}, expected paused`)
    await sleep(Math.max(0, paused + SECONDS_ASLEEP * 1000 - now()))

    resuming = now()
    sandbox = await step('connect (resume)', () => Sandbox.connect(sandboxId, { timeoutMs: 60_000 }))
    after = await step('first answer from port 8000', () => waitForPort8000(sandboxId))
    const readAfter = now()

    // Between the two readings the machine ran for this long, and slept for the rest.
    const ran = (paused - readBefore + readAfter - resuming) / 1000
    const counted = after.count - before.count
    check(after.pid === before.pid, `another process answers: pid ${before.pid} became ${after.pid}`)
    check(counted >= 0, `the counter went back from ${before.count} to ${after.count}`)
    check(
      counted <= ran * TICKS_PER_SECOND + 5,
      `the counter ran during the pause: ${counted} ticks, but the machine ran only for ${ran.toFixed(2)} s`,
    )
    await waitForPort8000(sandboxId, after.count + 3)

    const note = await step('read the file', () => sandbox.files.read('/home/user/note.txt'))
    check(note === 'written before the pause', `the file reads '${note}'`)

    await step('read the variable', () =>
      typeIntoTerminal(sandbox, terminal.pid, 'echo "still-$colour"', 'still-violet'))

    const { stdout } = await step('run a command', () => sandbox.commands.run('echo hello'))
    check(stdout === 'hello\n', `\`echo hello\` printed ${JSON.stringify(stdout)}`)
  } finally {
    await step('kill', () => Sandbox.kill(sandboxId))
  }

  check((await listedState(sandboxId)) === undefined, 'the killed sandbox is still listed')
  console.log(`  counter: ${before.count} at the pause, ${after.count} after it, same process ${after.pid};`)
  console.log(`  asleep for ${((resuming - paused) / 1000).toFixed(1)} s; file, terminal variable and port 8000 all there.`)
  console.log(JSON.stringify({ program: 'javascript', sdk: sdkVersion(), milliseconds: steps }))
}

try {
  await main()
} catch (error) {
  console.error(error instanceof Failure ? `main_job.mjs: ${error.message}` : error)
  process.exitCode = 1
}
