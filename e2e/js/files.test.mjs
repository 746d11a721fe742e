import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { FilesystemEventType, InvalidArgumentError, NotFoundError } from 'e2b'
import { makeSandbox, within } from './support.mjs'

test('text and bytes come back as they were written', async (t) => {
  const sandbox = await makeSandbox(t)
  const written = await sandbox.files.write('letter.txt', 'Příliš žluťoučký kůň 🐎\n')
  assert.equal(written.path, '/home/user/letter.txt')
  assert.equal(await sandbox.files.read('letter.txt'), 'Příliš žluťoučký kůň 🐎\n')

  const data = randomBytes(3_000_000)
  await sandbox.files.write('data.bin', new Blob([data]))
  assert.ok(Buffer.from(await sandbox.files.read('data.bin', { format: 'bytes' })).equals(data))
  assert.ok(Buffer.from(await (await sandbox.files.read('data.bin', { format: 'blob' })).arrayBuffer()).equals(data))
})

test('streams are written and read', async (t) => {
  const sandbox = await makeSandbox(t)
  const parts = Array.from({ length: 40 }, () => randomBytes(50_000))
  await sandbox.files.write('streamed.bin', new ReadableStream({
    start(controller) {
      for (const part of parts) controller.enqueue(part)
      controller.close()
    },
  }))
  const expected = createHash('sha256').update(Buffer.concat(parts)).digest('hex')
  const inside = await sandbox.commands.run('sha256sum < streamed.bin')
  assert.equal(inside.stdout.split(' ')[0], expected)

  const hash = createHash('sha256')
  for await (const chunk of await sandbox.files.read('streamed.bin', { format: 'stream' })) hash.update(chunk)
  assert.equal(hash.digest('hex'), expected)
})

test('several files are written in one call and listed', async (t) => {
  const sandbox = await makeSandbox(t)
  await sandbox.files.write([{ path: 'many/a.txt', data: 'a' }, { path: 'many/sub/b.txt', data: 'b' }])
  assert.deepEqual((await sandbox.files.list('many')).map((entry) => entry.name).sort(), ['a.txt', 'sub'])
  const deep = await sandbox.files.list('many', { depth: 2 })
  assert.ok(deep.some((entry) => entry.path === '/home/user/many/sub/b.txt'))
})

test('directories, information, renaming and removing', async (t) => {
  const sandbox = await makeSandbox(t)
  assert.equal(await sandbox.files.makeDir('new/inner'), true)
  assert.equal(await sandbox.files.makeDir('new/inner'), false)
  await sandbox.files.write('new/file', 'twelve bytes')
  const info = await sandbox.files.getInfo('new/file')
  assert.deepEqual(
    [info.name, info.path, info.type, info.size, info.mode, info.permissions, info.owner, info.group],
    ['file', '/home/user/new/file', 'file', 12, 0o644, '-rw-r--r--', 'user', 'user'],
  )
  assert.equal((await sandbox.files.rename('new/file', 'new/moved')).path, '/home/user/new/moved')
  assert.equal(await sandbox.files.exists('new/file'), false)
  await sandbox.files.remove('new')
  await sandbox.files.remove('new')
  assert.equal(await sandbox.files.exists('new'), false)
})

test('mistakes are errors of the right kind', async (t) => {
  const sandbox = await makeSandbox(t)
  await assert.rejects(sandbox.files.read('missing.txt'), NotFoundError)
  await assert.rejects(sandbox.files.list('/nowhere'), NotFoundError)
  await assert.rejects(sandbox.files.write('/home/user', 'x'), InvalidArgumentError)
})

test('a watched directory reports what happens in it', async (t) => {
  const sandbox = await makeSandbox(t)
  await sandbox.files.makeDir('watched/sub')
  const wanted = new Set([
    `a.txt ${FilesystemEventType.CREATE}`, `a.txt ${FilesystemEventType.WRITE}`,
    `sub/b.txt ${FilesystemEventType.WRITE}`, `a.txt ${FilesystemEventType.REMOVE}`,
  ])
  const seen = []
  let all
  const done = new Promise((resolve) => { all = resolve })
  const handle = await sandbox.files.watchDir('watched', (event) => {
    seen.push(`${event.name} ${event.type}`)
    wanted.delete(`${event.name} ${event.type}`)
    if (wanted.size === 0) all()
  }, { recursive: true, timeoutMs: 0 })
  await sandbox.files.write('watched/a.txt', '1')
  await sandbox.files.write('watched/sub/b.txt', '1')
  await sandbox.files.remove('watched/a.txt')
  await within(done, `all events; seen: ${seen}`)
  await handle.stop()
})
