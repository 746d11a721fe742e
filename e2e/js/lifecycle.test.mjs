import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { test } from 'node:test'
import { AuthenticationError, NotFoundError, Sandbox, TimeoutError } from 'e2b'
import { listed, makeSandbox, port, screen, type, waitFor, within } from './support.mjs'

const COUNTER = `
let count = 0
setInterval(() => { count += 1 }, 100)
require('node:http').createServer((request, response) => {
  response.end(JSON.stringify({ count, pid: process.pid }))
}).listen(8000, '0.0.0.0')
`

const counter = async (sandboxId) => {
  const { status, text } = await port(sandboxId, 8000)
  return status === 200 && JSON.parse(text)
}

test('processes, variables, files and ports survive a pause', async (t) => {
  const sandbox = await makeSandbox(t)
  const { sandboxId } = sandbox
  await sandbox.files.write('counter.cjs', COUNTER)
  await sandbox.commands.run('node counter.cjs', { background: true, timeoutMs: 0 })
  const terminal = await sandbox.pty.create({ rows: 24, cols: 80, timeoutMs: 0, onData: () => {} })
  await type(sandbox, terminal.pid, 'colour=violet; touch /tmp/typed')
  await waitFor(() => sandbox.files.exists('/tmp/typed'), 'the line to be typed')
  await terminal.disconnect()

  const before = await waitFor(() => counter(sandboxId), 'port 8000')
  const readBefore = performance.now()
  assert.equal(await sandbox.pause(), true)
  const paused = performance.now()
  assert.equal((await port(sandboxId, 8000)).status, 502)
  assert.equal((await listed()).get(sandboxId), 'paused')
  await waitFor(() => performance.now() > paused + 3000, 'three seconds to pass')

  const resuming = performance.now()
  const same = await Sandbox.connect(sandboxId, { timeoutMs: 60_000 })
  const after = await waitFor(() => counter(sandboxId), 'port 8000 after the resume')
  const ran = (paused - readBefore + performance.now() - resuming) / 1000
  assert.equal(after.pid, before.pid)
  assert.ok(after.count >= before.count && after.count <= before.count + ran * 10 + 5, `${before.count}, ${after.count}, ${ran}`)

  const shown = screen()
  const again = await same.pty.connect(terminal.pid, { timeoutMs: 0, onData: shown.onData })
  await type(same, terminal.pid, 'echo "still-$colour"')
  await shown.shows('still-violet')
  await again.disconnect()
  await waitFor(async () => (await counter(sandboxId)).count > after.count, 'the counter to go on')
})

test('pause says true, then false; a paused sandbox can be killed', async (t) => {
  const sandbox = await makeSandbox(t)
  assert.equal(await sandbox.pause(), true)
  assert.equal(await sandbox.pause(), false)
  assert.equal(await sandbox.isRunning(), false)
  assert.equal((await sandbox.getInfo()).state, 'paused')
  assert.equal(await sandbox.kill(), true)
  assert.equal(await sandbox.kill(), false)
  await assert.rejects(Sandbox.connect(sandbox.sandboxId), NotFoundError)
})

test('ten pauses in a row lose nothing', async (t) => {
  let sandbox = await makeSandbox(t)
  for (let number = 0; number < 10; number += 1) {
    await sandbox.commands.run(`echo ${number} >> log`)
    await sandbox.pause()
    sandbox = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 300_000 })
  }
  assert.equal(await sandbox.files.read('log'), Array.from({ length: 10 }, (_, n) => `${n}\n`).join(''))
})

test('the listing filters by metadata and state and pages newest first', async (t) => {
  const mark = randomUUID()
  const made = []
  for (let n = 0; n < 3; n += 1) made.push(await makeSandbox(t, { metadata: { mark, 'which one': `a & b=${n}` } }))
  await made[1].pause()
  const ids = made.map((sandbox) => sandbox.sandboxId)
  assert.deepEqual([...(await listed({ query: { metadata: { mark } }, limit: 2 })).keys()], [...ids].reverse())
  assert.deepEqual([...(await listed({ query: { metadata: { mark }, state: ['paused'] } })).keys()], [ids[1]])
  assert.deepEqual([...(await listed({ query: { metadata: { mark, 'which one': 'a & b=2' } } })).keys()], [ids[2]])
})

test('a timeout is kept: set, expired, and turned into a pause', async (t) => {
  const killed = await makeSandbox(t)
  const pausing = await makeSandbox(t, { lifecycle: { onTimeout: 'pause' } })
  await killed.setTimeout(900_000)
  const remaining = (await killed.getInfo()).endAt.getTime() - Date.now()
  assert.ok(remaining > 800_000 && remaining <= 901_000, `${remaining} ms remain`)
  await killed.setTimeout(1000)
  await pausing.setTimeout(1000)
  await waitFor(async () => !(await listed()).has(killed.sandboxId), 'the first to be killed')
  await waitFor(async () => (await listed()).get(pausing.sandboxId) === 'paused', 'the second to be paused')
  const same = await Sandbox.connect(pausing.sandboxId, { timeoutMs: 300_000 })
  assert.equal((await same.commands.run('echo awake')).stdout, 'awake\n')
})

test('killing a sandbox cuts the streams into it', async (t) => {
  const sandbox = await makeSandbox(t)
  const handle = await sandbox.commands.run('sleep 1000', { background: true, timeoutMs: 0 })
  const cut = assert.rejects(handle.wait(), TimeoutError)
  await sandbox.kill()
  await within(cut, 'the stream to end')
})

test('mistakes are errors of the right kind', async () => {
  await assert.rejects(Sandbox.create('no-such-template'), /no-such-template/)
  await assert.rejects(Sandbox.create({ apiKey: `e2b_${'0'.repeat(40)}` }), AuthenticationError)
  await assert.rejects(Sandbox.getInfo('i0000000000000000000'), NotFoundError)
})
