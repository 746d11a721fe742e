// What several tests need. Every wait is for a condition, with a deadline that only has to end a hopeless wait.

import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { Sandbox } from 'e2b'

for (const name of ['E2B_API_KEY', 'E2B_API_URL', 'E2B_SANDBOX_URL']) {
  if (!process.env[name]) {
    throw new Error(`${name} is not set. Run the suite with: python3 e2e/server.py npm --prefix e2e/js test`)
  }
}

// Software emulation is about ten times slower than the hardware.
export const DEADLINE_MS = 60_000

/** Asks until the answer is truthy, and returns it. */
export async function waitFor(probe, what) {
  const deadline = performance.now() + DEADLINE_MS
  for (;;) {
    const answer = await probe()
    if (answer) return answer
    assert.ok(performance.now() < deadline, `waited ${DEADLINE_MS} ms for ${what}; last answer: ${answer}`)
    await sleep(50)
  }
}

/** The result of a promise, or a failure that says what was awaited. */
export async function within(promise, what) {
  const late = sleep(DEADLINE_MS, 'late', { ref: false })
  const result = await Promise.race([promise.then((value) => ({ value })), late])
  assert.notEqual(result, 'late', `waited ${DEADLINE_MS} ms for ${what}`)
  return result.value
}

/** A sandbox that is killed when the test ends, whatever state it is in by then. */
export async function makeSandbox(t, options = {}) {
  const sandbox = await Sandbox.create({ timeoutMs: 600_000, ...options })
  t.after(() => Sandbox.kill(sandbox.sandboxId))
  return sandbox
}

/** One request to a port of a sandbox, through the gateway. */
export async function port(sandboxId, number, path = '/', init = {}) {
  const answer = await fetch(process.env.E2B_SANDBOX_URL + path, {
    ...init,
    headers: { ...init.headers, 'E2b-Sandbox-Id': sandboxId, 'E2b-Sandbox-Port': String(number) },
    signal: AbortSignal.timeout(DEADLINE_MS),
  })
  return { status: answer.status, text: await answer.text() }
}

/** Every sandbox the listing shows, over all its pages: id to state. */
export async function listed(options) {
  const pages = Sandbox.list(options)
  const found = new Map()
  while (pages.hasNext) {
    for (const sandbox of await pages.nextItems()) found.set(sandbox.sandboxId, sandbox.state)
  }
  return found
}

/** A terminal's output, and a wait for a text in it. */
export function screen() {
  let text = ''
  let look = () => {}
  return {
    onData: (data) => {
      text += new TextDecoder().decode(data)
      look()
    },
    shows: (wanted) =>
      within(
        new Promise((resolve) => {
          look = () => { if (text.includes(wanted)) resolve(text) }
          look()
        }),
        `the terminal to print '${wanted}'; it printed ${JSON.stringify(text)}`,
      ),
  }
}

export const type = (sandbox, pid, line) => sandbox.pty.sendInput(pid, new TextEncoder().encode(`${line}\n`))
