// What every generation of the JavaScript SDK can do in the same way, one method for each feature. A generation's own
// scenario adds how its sandboxes are made, listed, paused, resumed and killed.

import assert from 'node:assert/strict'
import { randomBytes, randomUUID } from 'node:crypto'
import { NotFoundError, Sandbox, TimeoutError } from 'e2b'
import { waitFor } from './report.mjs'

// Says on a signal what it holds in memory and nowhere else.
const KEEPER = `trap 'echo "$SECRET in $$" > said' USR1; while :; do sleep 0.1; done`

export class Steps {
  mark = randomUUID()
  made = []

  async kept(creating) {
    const sandbox = await creating
    this.made.push(sandbox.sandboxId)
    return sandbox
  }

  /** Takes away what a failed step left. */
  async clean() {
    for (const id of this.made) await Sandbox.kill(id)
  }

  command(cmd, options = {}, sandbox = this.sandbox) {
    return sandbox.commands.run(cmd, options)
  }

  // --- inside a sandbox ---

  async run() {
    const result = await this.command('echo out; echo err >&2')
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\n', 'err\n', 0])
    const say = 'echo "$COLOUR $SHAPE $PWD $(id -un)"'
    assert.equal((await this.command(say)).stdout, 'violet  /home/user user\n')
    const changed = await this.command(say, { envs: { SHAPE: 'round' }, cwd: '/usr', user: 'root' })
    assert.equal(changed.stdout, 'violet round /usr root\n')
    await assert.rejects(this.command('echo before; echo reason >&2; exit 7'), (failure) => {
      assert.deepEqual([failure.exitCode, failure.stdout, failure.stderr], [7, 'before\n', 'reason\n'])
      return true
    })
  }

  async stream() {
    const seen = []
    const onStdout = (output) => {
      if (seen.length === 0) this.sandbox.files.write('/tmp/go', '')
      seen.push(output)
    }
    const wait = 'while [ ! -e /tmp/go ]; do sleep 0.05; done'
    const result = await this.command(`echo first; ${wait}; echo second; echo third >&2`, { onStdout })
    assert.ok(seen.join('') === 'first\nsecond\n' && seen.length > 1, JSON.stringify(seen))
    assert.deepEqual([result.stdout, result.stderr], ['first\nsecond\n', 'third\n'])
  }

  async stdin() {
    // Releases that have no `stdin` option keep it open.
    const handle = await this.command('read line; echo "got $line"', { background: true, stdin: true })
    await this.sandbox.commands.sendStdin(handle.pid, 'hello\n')
    assert.equal((await handle.wait()).stdout, 'got hello\n')
  }

  async close_stdin() {
    const handle = await this.command('wc -c', { background: true, stdin: true })
    await this.sandbox.commands.sendStdin(handle.pid, '12345')
    await this.sandbox.commands.closeStdin(handle.pid)
    assert.equal((await handle.wait()).stdout.trim(), '5')
  }

  async processes() {
    const { commands } = this.sandbox
    const handle = await this.command('sleep 1000', { background: true, timeoutMs: 0 })
    assert.ok((await commands.list()).some(({ pid }) => pid === handle.pid))
    const attached = await commands.connect(handle.pid)
    const ends = [attached, handle].map((waiting) => assert.rejects(waiting.wait()))
    assert.equal(await commands.kill(handle.pid), true)
    await Promise.all(ends)
    assert.equal(await commands.kill(handle.pid), false)
  }

  async deadline() {
    await assert.rejects(this.command('sleep 1000', { timeoutMs: 3000 }), TimeoutError)
  }

  async pty() {
    let seen = ''
    const onData = (data) => { seen += new TextDecoder().decode(data) }
    const terminal = await this.sandbox.pty.create({ rows: 24, cols: 80, onData, timeoutMs: 0 })
    const type = (line) => this.sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode(`${line}\n`))
    const shows = (wanted) => waitFor(() => seen.includes(wanted), () => `'${wanted}' in ${JSON.stringify(seen)}`)
    await type('test -t 0 && echo result-$((20 + 3))-$TERM')
    await shows('result-23-xterm-256color')
    await this.sandbox.pty.resize(terminal.pid, { rows: 40, cols: 132 })
    await type('echo "size:$(stty size)"')
    await shows('size:40 132')
    const ended = assert.rejects(terminal.wait())
    assert.equal(await this.sandbox.pty.kill(terminal.pid), true)
    await ended
  }

  async files() {
    const { files } = this.sandbox
    const text = 'Příliš žluťoučký kůň 🐎\n'
    assert.equal((await files.write('letter.txt', text)).path, '/home/user/letter.txt')
    assert.equal(await files.read('letter.txt'), text)
    const data = randomBytes(1_000_000)
    await files.write('/tmp/data.bin', new Blob([data]))
    assert.ok(Buffer.from(await files.read('/tmp/data.bin', { format: 'bytes' })).equals(data))
    const parts = []
    for await (const part of await files.read('/tmp/data.bin', { format: 'stream' })) parts.push(part)
    assert.ok(Buffer.concat(parts).equals(data))
    assert.equal(await files.makeDir('new/inner'), true)
    assert.equal(await files.makeDir('new/inner'), false)
    await files.write('new/a', 'a')
    const listed = (await files.list('new')).map(({ name, type, path }) => `${name} ${type} ${path}`).sort()
    assert.deepEqual(listed, ['a file /home/user/new/a', 'inner dir /home/user/new/inner'])
    assert.equal((await files.rename('new/a', 'new/b')).path, '/home/user/new/b')
    assert.equal(await files.exists('new/b'), true)
    assert.equal(await files.exists('new/a'), false)
    await files.remove('new')
    assert.equal(await files.exists('new'), false)
    await assert.rejects(files.read('missing.txt'), NotFoundError)
  }

  async write_many() {
    const written = await this.sandbox.files.write([
      { path: 'many/a.txt', data: 'a' },
      { path: 'many/sub/b.txt', data: 'b' },
    ])
    assert.deepEqual(written.map(({ path }) => path), ['/home/user/many/a.txt', '/home/user/many/sub/b.txt'])
    assert.equal(await this.sandbox.files.read('many/sub/b.txt'), 'b')
  }

  async stat() {
    await this.sandbox.files.write('stat.txt', 'twelve bytes')
    const { name, type, size, mode, permissions, owner, group } = await this.sandbox.files.getInfo('stat.txt')
    assert.deepEqual(
      [name, type, size, mode, permissions, owner, group],
      ['stat.txt', 'file', 12, 0o644, '-rw-r--r--', 'user', 'user'],
    )
  }

  /** Watches a directory, and returns a wait for events and a way to end it. */
  async watching(path, options) {
    const seen = []
    const handle = await this.sandbox.files.watchDir(path, ({ name, type }) => seen.push(`${name} ${type}`), options)
    const shows = (...wanted) => waitFor(() => wanted.every((event) => seen.includes(event)), () => `${wanted}; seen: ${seen}`)
    return { shows, stop: () => handle.stop() }
  }

  async watch() {
    const { files } = this.sandbox
    await files.makeDir('watched')
    const watch = await this.watching('watched')
    await files.write('watched/a.txt', '1')
    await watch.shows('a.txt create', 'a.txt write')
    await files.rename('watched/a.txt', 'watched/b.txt')
    await watch.shows('a.txt rename', 'b.txt create')
    await this.command('chmod 600 watched/b.txt')
    await watch.shows('b.txt chmod')
    await files.remove('watched/b.txt')
    await watch.shows('b.txt remove')
    await watch.stop()
  }

  async watch_deep() {
    const { files } = this.sandbox
    await files.makeDir('deep/old')
    const watch = await this.watching('deep', { recursive: true })
    await files.write('deep/old/x.txt', '1')
    await watch.shows('old/x.txt write')
    await files.makeDir('deep/new')
    await watch.shows('new create')
    await files.write('deep/new/y.txt', '1')
    await watch.shows('new/y.txt write')
    await watch.stop()
  }

  async host() {
    await this.sandbox.files.write('site/index.html', this.mark)
    await this.command('python3 -m http.server 8000 -d site', { background: true, timeoutMs: 0 })
    const url = `https://${this.sandbox.getHost(8000)}/`
    await waitFor(async () => {
      const answer = await fetch(url)
      const body = await answer.text()
      return answer.status === 200 && body === this.mark
    }, () => `the site at ${url}`)
  }

  async urls() {
    await this.sandbox.files.write('/home/user/by-url.txt', this.mark)
    const read = await fetch(await this.sandbox.downloadUrl('/home/user/by-url.txt'))
    assert.deepEqual([read.status, await read.text()], [200, this.mark])
    const form = new FormData()
    form.append('file', new Blob([this.mark]), 'up.txt')
    const written = await fetch(await this.sandbox.uploadUrl('/home/user/up.txt'), { method: 'POST', body: form })
    assert.equal(written.status, 200, await written.text())
    assert.equal(await this.sandbox.files.read('/home/user/up.txt'), this.mark)
  }

  // --- the sandbox as a whole ---

  async metrics() {
    const measured = await waitFor(async () => {
      const points = await this.sandbox.getMetrics()
      return points.length > 0 && points.at(-1)
    }, () => 'a measurement')
    // The pre-releases have it in MiB.
    const total = measured.memTotalMiB ?? measured.memTotal / 2 ** 20
    assert.ok(measured.cpuCount >= 1 && total > 256 && total <= 512, JSON.stringify(measured))
  }

  /** Puts something into memory, and only there, that a resume must bring back. */
  async remember() {
    await this.sandbox.files.write('/home/user/kept.txt', this.mark)
    this.keeper = await this.command(KEEPER, { background: true, timeoutMs: 0, envs: { SECRET: this.mark } })
    // Its stream is cut by the pause.
    this.keeper.wait().catch(() => {})
  }

  /** Asks for it again, through the sandbox object that the resume gave. */
  async recall(sandbox) {
    const { pid } = this.keeper
    assert.equal(await sandbox.files.read('/home/user/kept.txt'), this.mark)
    assert.ok((await sandbox.commands.list()).some((process) => process.pid === pid))
    await this.command(`rm -f said; kill -USR1 ${pid}`, {}, sandbox)
    const said = await waitFor(
      async () => (await sandbox.files.exists('said')) && (await sandbox.files.read('said')),
      () => 'the process to say what it remembers',
    )
    assert.equal(said, `${this.mark} in ${pid}\n`)
    const attached = await sandbox.commands.connect(pid)
    const ended = assert.rejects(attached.wait())
    assert.equal(await attached.kill(), true)
    await ended
  }

  /** Sets a timeout that passes at once, and waits for the sandbox to be gone. */
  async expires(sandbox) {
    await sandbox.setTimeout(1000)
    await waitFor(async () => !(await sandbox.isRunning()), () => 'the sandbox to be gone')
  }

  async answers(sandbox) {
    assert.equal((await this.command('echo again', {}, sandbox)).stdout, 'again\n')
  }
}
