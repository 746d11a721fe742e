// Runs the steps a scenario has been asked for, and prints one line of JSON for each:
//
//     node SCENARIO.mjs FEATURE...
//
// A line is {"feature": ..., "ok": true|false, "why": ...}. The steps build on each other (what is resumed must have been
// paused), so they run in the order they are named in, and a failed one does not stop the rest.

import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'

// Software emulation is about ten times slower than hardware; a deadline only has to end a hopeless wait.
export const DEADLINE_MS = 60_000

/** Asks until the answer is truthy, and returns it. */
export async function waitFor(probe, what) {
  const deadline = performance.now() + DEADLINE_MS
  for (;;) {
    const answer = await probe()
    if (answer) return answer
    assert.ok(performance.now() < deadline, `waited ${DEADLINE_MS} ms for ${what()}`)
    await sleep(100)
  }
}

/** What went wrong, and the line of the scenario where it did. */
function why(error) {
  const place = /scenarios\/((?!report)\w+\.mjs:\d+)/.exec(error?.stack ?? '')
  return `${error?.name}: ${error?.message}`.slice(0, 600) + (place ? ` (${place[1]})` : '')
}

export async function main(Scenario) {
  const scenario = new Scenario()
  for (const feature of process.argv.slice(2)) {
    let line
    try {
      await scenario[feature]()
      line = { feature, ok: true, why: '' }
    } catch (error) {
      line = { feature, ok: false, why: why(error) }
    }
    console.log(JSON.stringify(line))
  }
  await scenario.clean()
  // Streams that a failed step left open must not keep the program alive.
  process.exit()
}
