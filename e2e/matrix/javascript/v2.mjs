// The releases since 2.15.0: `pause()`, and `Sandbox.connect(id)` resumes.

import { main } from './report.mjs'
import { V2 } from './v2_steps.mjs'

await main(V2)
