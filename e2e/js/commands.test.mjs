import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CommandExitError, NotFoundError, TimeoutError } from 'e2b'
import { makeSandbox, waitFor, within } from './support.mjs'

test('a command gives its output and exit code', async (t) => {
  const sandbox = await makeSandbox(t)
  const result = await sandbox.commands.run('echo out; echo err >&2')
  assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\n', 'err\n', 0])
})

test('a failing command throws with its exit code and output', async (t) => {
  const sandbox = await makeSandbox(t)
  await assert.rejects(sandbox.commands.run('echo before; echo why >&2; exit 7'), (error) => {
    assert.ok(error instanceof CommandExitError)
    assert.deepEqual([error.exitCode, error.stdout, error.stderr], [7, 'before\n', 'why\n'])
    return true
  })
})

test('output arrives while the command is still running', async (t) => {
  const sandbox = await makeSandbox(t)
  let released
  const result = await sandbox.commands.run(
    'echo first; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo second',
    { onStdout: () => { released ??= sandbox.files.write('/tmp/go', '') } },
  )
  assert.equal(result.stdout, 'first\nsecond\n')
})

test('standard input is fed and closed', async (t) => {
  const sandbox = await makeSandbox(t)
  const handle = await sandbox.commands.run('wc -c', { background: true, stdin: true })
  await handle.sendStdin('12345')
  await handle.sendStdin(new TextEncoder().encode('67890\n'))
  await handle.closeStdin()
  assert.equal((await handle.wait()).stdout.trim(), '11')
})

test('a background command is listed, attached to, and killed', async (t) => {
  const sandbox = await makeSandbox(t)
  const handle = await sandbox.commands.run('sleep 1000', { background: true })
  assert.ok((await sandbox.commands.list()).some((process) => process.pid === handle.pid))
  const attached = await sandbox.commands.connect(handle.pid)
  const ended = assert.rejects(attached.wait(), CommandExitError)
  const alsoEnded = assert.rejects(handle.wait(), CommandExitError)
  assert.equal(await handle.kill(), true)
  await within(Promise.all([ended, alsoEnded]), 'both streams to end')
  await waitFor(async () => !(await sandbox.commands.list()).some((process) => process.pid === handle.pid), 'an empty list')
  assert.equal(await sandbox.commands.kill(handle.pid), false)
  await assert.rejects(sandbox.commands.connect(999_999), NotFoundError)
})

test('a command over its timeout is ended', async (t) => {
  const sandbox = await makeSandbox(t)
  await assert.rejects(sandbox.commands.run('sleep 1000', { timeoutMs: 2000 }), TimeoutError)
})

test('environment, directory and user are the ones asked for', async (t) => {
  const sandbox = await makeSandbox(t, { envs: { COLOUR: 'violet', SHAPE: 'round' } })
  const say = 'echo "$COLOUR $SHAPE $PWD $(id -un)"'
  assert.equal((await sandbox.commands.run(say)).stdout, 'violet round /home/user user\n')
  assert.equal(
    (await sandbox.commands.run(say, { envs: { SHAPE: 'square' }, cwd: '/usr', user: 'root' })).stdout,
    'violet square /usr root\n',
  )
})

test('twenty commands at once do not mix their output', async (t) => {
  const sandbox = await makeSandbox(t)
  const results = await Promise.all(Array.from({ length: 20 }, (_, n) => sandbox.commands.run(`echo ${n}; echo ${n}`)))
  assert.deepEqual(results.map((result) => result.stdout), Array.from({ length: 20 }, (_, n) => `${n}\n${n}\n`))
})
