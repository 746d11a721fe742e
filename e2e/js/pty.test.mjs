import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeSandbox, screen, type, waitFor, within } from './support.mjs'

test('a terminal answers, is resized, and keeps its variables for the next client', async (t) => {
  const sandbox = await makeSandbox(t)
  const first = screen()
  const terminal = await sandbox.pty.create({ rows: 24, cols: 80, timeoutMs: 0, onData: first.onData })
  await type(sandbox, terminal.pid, 'colour=violet; echo set-$((40 + 2))')
  await first.shows('set-42')
  await sandbox.pty.resize(terminal.pid, { rows: 30, cols: 90 })
  await type(sandbox, terminal.pid, 'echo "size:$(stty size)"')
  await first.shows('size:30 90')
  await terminal.disconnect()

  const second = screen()
  const again = await sandbox.pty.connect(terminal.pid, { timeoutMs: 0, onData: second.onData })
  await type(sandbox, terminal.pid, 'echo "still-$colour"')
  await second.shows('still-violet')
  await again.disconnect()
  assert.equal(await sandbox.pty.kill(terminal.pid), true)
  await waitFor(async () => !(await sandbox.commands.list()).some(({ pid }) => pid === terminal.pid), 'it to be gone')
  assert.equal(await sandbox.pty.kill(terminal.pid), false)
})

test('leaving the shell ends the terminal with its exit code', async (t) => {
  const sandbox = await makeSandbox(t)
  const terminal = await sandbox.pty.create({ rows: 24, cols: 80, timeoutMs: 0, onData: () => {} })
  await type(sandbox, terminal.pid, 'exit 0')
  assert.equal((await within(terminal.wait(), 'the terminal to end')).exitCode, 0)
})
