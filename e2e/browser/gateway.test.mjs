// What a person sees who opens a sandbox in a browser.

import assert from 'node:assert/strict'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { Sandbox } from 'e2b'
import { openPage, serveSite, siteUrl } from './browser.mjs'

/** Pictures for whoever wants to see what the test saw. */
async function picture(page, name) {
  const directory = process.env.TORPOR_LOG_DIR
  if (!directory) return
  await mkdir(directory, { recursive: true })
  await page.screenshot({ path: join(directory, `browser-${name}.png`) })
}

test('a page goes away at pause, says so, and comes back by itself after the resume', async (t) => {
  const sandbox = await serveSite(t)
  const page = await openPage(t)
  assert.equal((await page.goto(siteUrl(sandbox))).status(), 200)
  assert.equal(await page.textContent('h1'), 'Hello from the sandbox')
  assert.equal(await page.textContent('#visits'), '1')
  await picture(page, 'running')

  await sandbox.pause()
  const paused = await page.reload()
  assert.equal(paused.status(), 502)
  assert.equal(await page.textContent('h1'), 'This sandbox is paused')
  assert.match(await page.textContent('main'), new RegExp(sandbox.sandboxId))
  await picture(page, 'paused')

  await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 600_000 })
  // Nobody touches the browser: the page looks again.
  await page.waitForSelector('h1:text("Hello from the sandbox")')
  assert.equal(await page.textContent('#visits'), '2', 'the program inside was resumed, not started again')
  await picture(page, 'resumed')
})

test('a WebSocket says everything back, is cut at pause, and can be opened again', async (t) => {
  const sandbox = await serveSite(t)
  const page = await openPage(t)
  const everything = ['one', 'žluťoučký kůň', 'x'.repeat(70)]
  const said = async () => {
    await page.waitForFunction((count) => document.querySelectorAll('#said li').length === count, everything.length)
    return page.locator('#said li').allTextContents()
  }
  await page.goto(siteUrl(sandbox))
  assert.deepEqual(await said(), everything)
  await sandbox.pause()
  await page.waitForSelector('body.closed')
  await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 600_000 })
  await page.reload()
  assert.deepEqual(await said(), everything)
})

test('a visit resumes a sandbox that is made so, and the visitor sees its page at once', async (t) => {
  const sandbox = await serveSite(t, { lifecycle: { onTimeout: 'pause', autoResume: true } })
  await sandbox.pause()
  const page = await openPage(t)
  assert.equal((await page.goto(siteUrl(sandbox))).status(), 200)
  assert.equal(await page.textContent('h1'), 'Hello from the sandbox')
  assert.equal((await sandbox.getInfo()).state, 'running')
})

test('what is wrong is said in words: no such sandbox, a closed port', async (t) => {
  const sandbox = await serveSite(t)
  const page = await openPage(t)
  const nowhere = siteUrl(sandbox).replace('3000-', '4321-')
  assert.equal((await page.goto(nowhere)).status(), 502)
  assert.equal(await page.textContent('h1'), 'Nothing listens on this port')
  const nobody = siteUrl(sandbox).replace(sandbox.sandboxId, 'i0000000000000000000')
  assert.equal((await page.goto(nobody)).status(), 502)
  assert.equal(await page.textContent('h1'), 'There is no such sandbox')
  await picture(page, 'not-found')
})
