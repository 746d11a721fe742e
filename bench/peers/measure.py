#!/usr/bin/env python3
"""How long a peer takes to put a process with so much random live data away, and to get it back.

Every peer saves and restores the same program, `workload.c`. Pause: until the peer's own command says that it is done;
nothing is flushed to the disk. Resume: from the command until the workload has printed its next line, of which it prints one
every 10 ms. Between the two the image is flushed, untimed; it stays in the page cache. At the end the workload computes its
checksum anew. Prints JSON.

    bench/peers/measure.py runsc --live-mib 512 --runs 5 --program target/bench-peers/runsc
    bench/peers/measure.py qemu-file --live-mib 512 --kernel /var/cache/torpor/rootfs-*/vmlinuz --accel tcg
"""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from criu import Criu
from gvisor import Gvisor
from peer import Failed, Peer, flush
from qemu import QemuFile, QemuMappedRam

PEERS = {peer.name: peer for peer in (QemuFile, QemuMappedRam, Criu, Gvisor)}


def timed(operation, *then) -> float:
    started = time.monotonic()
    operation()
    for follow in then:
        follow()
    return (time.monotonic() - started) * 1000


def rounds(peer: Peer, runs: int) -> dict:
    pauses, resumes = [], []
    peer.start()
    before = peer.sum()
    peer.wait_for_tick()
    for _ in range(runs):
        peer.before_save()
        pauses.append(timed(peer.save))
        peer.after_save()
        flush(peer.work)
        resumes.append(timed(peer.restore, peer.wait_for_tick))
    peer.ask_for_sum()
    if (after := peer.sum()) != before:
        raise Failed(f"the live data changed: checksum {before.decode()} before, {after.decode()} after")
    return {"version": peer.version(), "runs": runs, "pause_ms": pauses, "resume_ms": resumes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--live-mib", type=int, default=400)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--program", help="runsc or criu; default: the one in PATH")
    parser.add_argument("--kernel", help="for QEMU: a kernel image with a serial console")
    parser.add_argument("--accel", choices=["kvm", "tcg"], default="tcg")
    parser.add_argument("--dir", help="where images go; default: the temporary directory")
    options = parser.parse_args()
    # So that nothing stays mounted or runs on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kind = PEERS[options.peer]
    if issubclass(kind, QemuFile):
        if not options.kernel:
            parser.error(f"{options.peer} needs --kernel")
        how = {"kernel": options.kernel, "accelerator": options.accel}
    else:
        how = {"program": options.program or kind.name}
    result = {"peer": kind.name, "about": kind.about, "live_mib": options.live_mib}
    with tempfile.TemporaryDirectory(prefix="torpor-bench-", dir=options.dir) as directory:
        try:
            peer = kind(pathlib.Path(directory).resolve(), options.live_mib, **how)
            try:
                result |= rounds(peer, options.runs)
            finally:
                peer.end()
        except (Failed, OSError, subprocess.SubprocessError) as failed:
            result["failed"] = str(failed)
    print(json.dumps(result))
    sys.exit("failed" in result)


if __name__ == "__main__":
    main()
