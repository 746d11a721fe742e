from e2b import Sandbox

sbx = Sandbox()
sandbox_id = sbx.pause()
same = Sandbox.resume(sandbox_id, timeout=60)
