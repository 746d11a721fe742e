import { Sandbox } from 'e2b'

const sbx = await Sandbox.create()
const sandboxId = await sbx.pause()
const same = await Sandbox.resume(sandboxId, { timeoutMs: 60_000 })
