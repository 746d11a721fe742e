// The first persistence releases, 1.1.0-beta.1 to 1.2.0-beta.4: `pause()` gives the id, `Sandbox.resume(id)`.

import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'
import { main } from './report.mjs'
import { Steps } from './steps.mjs'

class Beta extends Steps {
  make() {
    return this.kept(Sandbox.create({ timeoutMs: 300_000, metadata: { mark: this.mark }, envs: { COLOUR: 'violet' } }))
  }

  async create() {
    this.sandbox = await this.make()
    assert.match(this.sandbox.sandboxId, /-/)
    assert.equal(await this.sandbox.isRunning(), true)
  }

  async list() {
    // A page at a time since 1.2.0-beta.4.
    const listed = Sandbox.list()
    const found = 'nextItems' in listed ? await listed.nextItems() : await listed
    const ours = found.filter(({ metadata }) => metadata?.mark === this.mark)
    assert.deepEqual(ours.map(({ sandboxId }) => sandboxId), [this.sandbox.sandboxId])
  }

  async timeout() {
    await this.sandbox.setTimeout(600_000)
    await this.expires(await this.make())
  }

  async pause() {
    await this.remember()
    assert.equal(await this.sandbox.pause(), this.sandbox.sandboxId)
    assert.equal(await this.sandbox.isRunning(), false)
    // A second pause is 409, which these releases take for done.
    assert.equal(await this.sandbox.pause(), this.sandbox.sandboxId)
  }

  async resume() {
    const same = await Sandbox.resume(this.sandbox.sandboxId, { timeoutMs: 60_000 })
    assert.equal(same.sandboxId, this.sandbox.sandboxId)
    assert.equal(await same.isRunning(), true)
    await this.recall(same)
    this.sandbox = same
  }

  async connect() {
    await this.answers(await Sandbox.connect(this.sandbox.sandboxId))
    // A resume of what runs is 409, which these releases take for done.
    await this.answers(await Sandbox.resume(this.sandbox.sandboxId, { timeoutMs: 300_000 }))
  }

  async kill() {
    assert.equal(await Sandbox.kill(this.sandbox.sandboxId), true)
    assert.equal(await this.sandbox.isRunning(), false)
    assert.equal(await Sandbox.kill(this.sandbox.sandboxId), false)
  }
}

await main(Beta)
