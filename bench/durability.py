#!/usr/bin/env python3
"""`dd conv=fsync`: how long the disk itself takes to keep so many bytes, as the measure for a durable pause.

Copies a file of random bytes, which is in the page cache, to a new file in the directory given. Prints JSON.

    bench/durability.py --mb 537 --runs 5 --source target --dir /var/lib/torpor/vault
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--source", required=True, help="directory for the random bytes")
    parser.add_argument("--dir", required=True, help="directory they are copied to")
    options = parser.parse_args()
    times = []
    with (tempfile.TemporaryDirectory(prefix="bench-dd-", dir=options.source) as source,
          tempfile.TemporaryDirectory(prefix="bench-dd-", dir=options.dir) as directory):
        random, copy = pathlib.Path(source, "random"), pathlib.Path(directory, "copy")
        with random.open("wb") as file:
            for _ in range(options.mb):
                file.write(os.urandom(1000000))
        for _ in range(options.runs):
            copy.unlink(missing_ok=True)
            os.sync()
            subprocess.run(["cat", random], stdout=subprocess.DEVNULL, check=True)
            started = time.monotonic()
            subprocess.run(["dd", f"if={random}", f"of={copy}", "bs=1M", "conv=fsync", "status=none"], check=True)
            times.append((time.monotonic() - started) * 1000)
    print(json.dumps({"peer": "dd", "about": "`dd conv=fsync` onto the vault's file system", "mb": options.mb,
                      "runs": options.runs, "write_ms": times}))


if __name__ == "__main__":
    main()
