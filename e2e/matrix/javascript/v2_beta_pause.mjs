// The releases 2.0.0 to 2.14.1: `betaPause()`, `betaCreate({ autoPause: true })`; `Sandbox.connect(id)` resumes.

import { Sandbox } from 'e2b'
import { main } from './report.mjs'
import { V2 } from './v2_steps.mjs'

class V2BetaPause extends V2 {
  callPause(sandbox) {
    return sandbox.betaPause()
  }

  makeAutoPausing() {
    return this.kept(Sandbox.betaCreate({ autoPause: true, timeoutMs: 300_000 }))
  }
}

await main(V2BetaPause)
