// A headless Chromium of the host's, with nothing of an earlier run in it, and what a test needs of a sandbox.

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Sandbox } from 'e2b'
import { chromium } from 'playwright-core'

for (const name of ['E2B_API_KEY', 'E2B_API_URL', 'E2B_SANDBOX_URL']) {
  if (!process.env[name]) {
    throw new Error(`${name} is not set. Run the suite with: python3 e2e/server.py npm --prefix e2e/browser test`)
  }
}

// Software emulation is about ten times slower than the hardware; a deadline only has to end a hopeless wait.
export const DEADLINE_MS = 300_000

const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]

/** A page in a browser that ends with the test. */
export async function openPage(t) {
  const profile = await mkdtemp(join(tmpdir(), 'torpor-browser-'))
  const browser = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    headless: true,
    args: FLAGS,
  })
  t.after(async () => {
    await browser.close()
    await rm(profile, { recursive: true, force: true, maxRetries: 5 })
  })
  browser.setDefaultTimeout(DEADLINE_MS)
  return browser.newPage()
}

/** A sandbox that is killed when the test ends, and serves the site on port 3000. */
export async function serveSite(t, options = {}) {
  const sandbox = await Sandbox.create({ timeoutMs: 600_000, ...options })
  t.after(() => Sandbox.kill(sandbox.sandboxId))
  await sandbox.files.write('/home/user/site.mjs', SITE)
  await sandbox.commands.run('node site.mjs', { background: true, timeoutMs: 0 })
  const deadline = performance.now() + DEADLINE_MS
  while ((await siteStatus(sandbox)) !== 200) {
    if (performance.now() > deadline) throw new Error('the site in the sandbox does not answer')
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  return sandbox
}

async function siteStatus(sandbox) {
  const headers = { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '3000' }
  const answer = await fetch(process.env.E2B_SANDBOX_URL, { headers, signal: AbortSignal.timeout(DEADLINE_MS) })
  await answer.arrayBuffer()
  return answer.status
}

/** The site as a browser on this host reaches it, without any set-up: names below localhost are this host. */
export function siteUrl(sandbox) {
  return `http://3000-${sandbox.sandboxId}.localhost:${new URL(process.env.E2B_SANDBOX_URL).port}/`
}

// A page that counts its visits in memory, and a WebSocket that says everything back.
const SITE = `
import { createHash } from 'node:crypto'
import { createServer } from 'node:http'

let visits = 0
const page = () => \`<!doctype html><meta charset="utf-8"><title>In the sandbox</title>
<h1>Hello from the sandbox</h1><p id="visits">\${++visits}</p><ul id="said"></ul>
<script>
  const socket = new WebSocket(location.href.replace('http', 'ws') + 'echo')
  socket.onopen = () => ['one', 'žluťoučký kůň', 'x'.repeat(70)].forEach((word) => socket.send(word))
  socket.onmessage = ({ data }) => { const li = document.createElement('li'); li.textContent = data; said.append(li) }
  socket.onclose = () => document.body.classList.add('closed')
</script>\`

const server = createServer((request, response) => {
  if (request.url !== '/' || request.method !== 'GET') return response.writeHead(404).end()
  const isPage = String(request.headers.accept).includes('text/html')
  response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' })
  response.end(isPage ? page() : 'ready')
})

server.on('upgrade', (request, socket) => {
  const key = request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
  const accept = createHash('sha1').update(key).digest('base64')
  socket.write(\`HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: \${accept}\\r\\n\\r\\n\`)
  let pending = Buffer.alloc(0)
  socket.on('error', () => {})
  socket.on('data', (data) => {
    pending = Buffer.concat([pending, data])
    // Frames of at most 125 bytes: two bytes of head, four of mask.
    while (pending.length >= 6 && pending.length >= 6 + (pending[1] & 127)) {
      const length = pending[1] & 127
      const text = Buffer.from(pending.subarray(6, 6 + length).map((byte, i) => byte ^ pending[2 + (i % 4)]))
      socket.write(Buffer.concat([Buffer.from([pending[0], length]), text]))
      pending = pending.subarray(6 + length)
    }
  })
})

server.listen(3000, '0.0.0.0')
`
