// What all releases since 2.0.0 do in the same way; how they pause has changed once.

import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'
import { waitFor } from './report.mjs'
import { Steps } from './steps.mjs'

export class V2 extends Steps {
  make(options = {}) {
    const facts = { metadata: { mark: this.mark }, envs: { COLOUR: 'violet' } }
    return this.kept(Sandbox.create({ timeoutMs: 300_000, ...facts, ...options }))
  }

  makeAutoPausing() {
    return this.make({ lifecycle: { onTimeout: 'pause' } })
  }

  callPause(sandbox) {
    return sandbox.pause()
  }

  /** Every sandbox the listing shows, over all its pages: id to state. */
  async listed(options) {
    const pages = Sandbox.list(options)
    const found = new Map()
    while (pages.hasNext) {
      for (const { sandboxId, state } of await pages.nextItems()) found.set(sandboxId, state)
    }
    return found
  }

  async create() {
    this.sandbox = await this.make()
    assert.match(this.sandbox.sandboxId, /^[a-z0-9]+$/)
    assert.equal(await this.sandbox.isRunning(), true)
  }

  async list() {
    const second = await this.make()
    const both = [this.sandbox.sandboxId, second.sandboxId]
    const metadata = { mark: this.mark }
    assert.deepEqual([...(await this.listed({ query: { metadata }, limit: 1 })).keys()].sort(), [...both].sort())
    const running = await this.listed({ query: { metadata, state: ['running'] } })
    assert.ok([...running.values()].every((state) => state === 'running'), [...running])
    const everything = await this.listed()
    assert.ok(both.every((id) => everything.has(id)))
    assert.equal(await Sandbox.kill(second.sandboxId), true)
  }

  async info() {
    const info = await this.sandbox.getInfo()
    assert.deepEqual([info.sandboxId, info.state, info.metadata], [this.sandbox.sandboxId, 'running', { mark: this.mark }])
  }

  async timeout() {
    await this.sandbox.setTimeout(900_000)
    const remaining = (await this.sandbox.getInfo()).endAt.getTime() - Date.now()
    assert.ok(remaining > 600_000 && remaining <= 901_000, `${remaining} ms`)
    await this.expires(await this.make())
  }

  async auto_pause() {
    const sandbox = await this.makeAutoPausing()
    await sandbox.setTimeout(1000)
    await waitFor(async () => (await sandbox.getInfo()).state === 'paused', () => 'the sandbox to be paused')
    const same = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 300_000 })
    await this.answers(same)
    await same.kill()
  }

  async pause() {
    await this.remember()
    assert.equal(await this.callPause(this.sandbox), true)
    assert.equal(await this.sandbox.isRunning(), false)
    assert.equal((await this.sandbox.getInfo()).state, 'paused')
    assert.equal(await this.callPause(this.sandbox), false)
  }

  async resume() {
    const same = await Sandbox.connect(this.sandbox.sandboxId, { timeoutMs: 60_000 })
    assert.equal(same.sandboxId, this.sandbox.sandboxId)
    assert.equal(await same.isRunning(), true)
    await this.recall(same)
    // The object that paused it is as good as the new one.
    await this.answers(this.sandbox)
    this.sandbox = same
  }

  async connect() {
    await this.answers(await Sandbox.connect(this.sandbox.sandboxId, { timeoutMs: 300_000 }))
    await this.answers(await this.sandbox.connect({ timeoutMs: 300_000 }))
  }

  async disk_pause() {
    const sandbox = await this.make()
    const boot = async (of) => (await this.command('cat /proc/sys/kernel/random/boot_id', {}, of)).stdout
    await sandbox.files.write('kept.txt', this.mark)
    const before = await boot(sandbox)
    assert.equal(await sandbox.pause({ keepMemory: false }), true)
    const same = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 300_000 })
    assert.equal(await same.files.read('kept.txt'), this.mark)
    assert.notEqual(await boot(same), before)
    await same.kill()
  }

  async snapshot() {
    const listed = async () => {
      const pages = this.sandbox.listSnapshots()
      const found = []
      while (pages.hasNext) found.push(...(await pages.nextItems()).map((snapshot) => snapshot.snapshotId))
      return found
    }
    await this.sandbox.files.write('/dev/shm/in-memory', this.mark)
    const { snapshotId } = await this.sandbox.createSnapshot()
    assert.ok((await listed()).includes(snapshotId))
    const copy = await this.kept(Sandbox.create(snapshotId, { timeoutMs: 300_000 }))
    assert.notEqual(copy.sandboxId, this.sandbox.sandboxId)
    assert.equal(await copy.files.read('/dev/shm/in-memory'), this.mark)
    await copy.kill()
    assert.equal(await Sandbox.deleteSnapshot(snapshotId), true)
    assert.equal(await Sandbox.deleteSnapshot(snapshotId), false)
    assert.ok(!(await listed()).includes(snapshotId))
  }

  async fork() {
    await this.sandbox.files.write('/dev/shm/in-memory', this.mark)
    const children = await this.sandbox.fork({ count: 2, timeoutMs: 300_000 })
    const ids = children.map(({ sandboxId }) => sandboxId)
    this.made.push(...ids)
    assert.equal(new Set([this.sandbox.sandboxId, ...ids]).size, 3)
    for (const child of children) {
      assert.equal(await child.files.read('/dev/shm/in-memory'), this.mark)
      await child.kill()
    }
    await this.answers(this.sandbox)
  }

  async kill() {
    const paused = await this.make()
    await this.callPause(paused)
    for (const sandbox of [this.sandbox, paused]) {
      assert.equal(await Sandbox.kill(sandbox.sandboxId), true)
      assert.equal(await sandbox.isRunning(), false)
      assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
    }
  }
}
