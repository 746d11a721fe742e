"""The checker: what `torpor torture` runs in every sandbox. It keeps state of four kinds, and changes it by steps that
follow from their numbers alone, so that the model on the host (`model.rs`, which has the same rules) knows what has to be
here without ever having seen it.

    memory    PAGES pages; a step reads some, into a hash chain, and writes them anew
    files     created, overwritten, appended to, renamed, truncated, deleted; flushed or not
    database  SQLite, one transaction for each step
    time      the clock, and fresh random bytes, for the host to look at

    checker.py PORT SALT PAGES STEP DIRECTORY

It answers GET on PORT: /do?step=N&salt=S, /digest?nonce=N&pages=N&full=0|1, /press?mib=N (writes so much to the disk,
flushes it, and removes it again). One request after the other. A step that was
done already is answered again and not done again, so that a request whose answer was lost may be repeated.
"""

import hashlib
import json
import mmap
import os
import socket
import sqlite3
import struct
import sys
import time
import urllib.parse
import zlib

PAGE = 4096
CHUNK = 1 << 20


class Draw:
    """Numbers that follow from a text: SHA-256 of the text and a counter, eight numbers of 32 bits from each."""

    def __init__(self, key):
        self.key, self.counter, self.numbers = key, 0, []

    def below(self, limit):
        if not self.numbers:
            digest = hashlib.sha256(f"{self.key}#{self.counter}".encode()).digest()
            self.numbers = list(struct.unpack("<8I", digest))[::-1]
            self.counter += 1
        return self.numbers.pop() % limit


def fill(key, length):
    """`length` bytes that follow from a text."""
    digest = hashlib.sha256(key.encode()).digest()
    return (digest * (length // 32 + 1))[:length]


class Memory:
    def __init__(self, salt, pages):
        self.pages = pages
        # Anonymous pages, as the heap of a program has them.
        self.bytes = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.chain = hashlib.sha256(f"{salt}".encode()).digest()
        for page in range(pages):
            self.bytes[page * PAGE : (page + 1) * PAGE] = fill(f"{salt}/0/{page}", PAGE)

    def step(self, salt, step, draw):
        chain = hashlib.sha256(self.chain)
        for _ in range(100 + draw.below(900)):
            page = draw.below(self.pages)
            at = page * PAGE
            chain.update(self.bytes[at : at + PAGE])
            self.bytes[at : at + PAGE] = fill(f"{salt}/{step}/{page}", PAGE)
        self.chain = chain.digest()

    def sample(self, nonce, count):
        draw, digest = Draw(f"sample/{nonce}"), hashlib.sha256()
        for _ in range(count):
            at = draw.below(self.pages) * PAGE
            digest.update(self.bytes[at : at + PAGE])
        return digest.hexdigest()

    def content(self):
        """Every byte: CRC-32 of each MiB, and SHA-256 of those."""
        digest = hashlib.sha256()
        for at in range(0, self.pages * PAGE, CHUNK):
            digest.update(struct.pack("<I", zlib.crc32(self.bytes[at : at + CHUNK])))
        return digest.hexdigest()


class Files:
    def __init__(self, directory):
        self.directory = directory
        os.makedirs(directory, exist_ok=True)

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, mode, at, content, flush):
        with open(self.path(name), mode) as file:
            if at is not None:
                file.seek(at)
            file.write(content)
            if flush:
                file.flush()
                os.fsync(file.fileno())

    def step(self, salt, step, draw):
        for number in range(6):
            names = sorted(os.listdir(self.directory))
            kind = draw.below(8) if names else 0
            flush = draw.below(3) == 0
            key = f"{salt}/{step}/file/{number}"
            if kind <= 1:
                self.write(f"f{draw.below(32)}", "wb", None, fill(key, draw.below(40000)), flush)
                continue
            name = names[draw.below(len(names))]
            size = os.path.getsize(self.path(name))
            if kind <= 3:
                content = fill(key, draw.below(8000))
                self.write(name, "ab" if size < 100000 else "wb", None, content, flush)
            elif kind == 4:
                os.rename(self.path(name), self.path(f"f{draw.below(32)}"))
                if flush:
                    self.flush_directory()
            elif kind == 5:
                os.truncate(self.path(name), draw.below(size + 1))
            elif kind == 6:
                os.unlink(self.path(name))
            else:
                at = draw.below(size + 1)
                self.write(name, "r+b", at, fill(key, draw.below(4000)), flush)

    def flush_directory(self):
        directory = os.open(self.directory, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def digest(self, from_disk=False):
        if from_disk:
            os.sync()
        digest = hashlib.sha256()
        for name in sorted(os.listdir(self.directory)):
            with open(self.path(name), "rb") as file:
                if from_disk:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                content = file.read()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
        return digest.hexdigest()


class Database:
    def __init__(self, path, salt):
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute(f"pragma journal_mode = {'wal' if salt % 2 else 'delete'}")
        self.connection.execute("create table if not exists facts (id integer primary key, step integer, value text)")

    def step(self, salt, step, draw):
        self.connection.execute("begin immediate")
        for number in range(4):
            value = hashlib.sha256(f"{salt}/{step}/fact/{number}".encode()).hexdigest()
            self.connection.execute("insert or replace into facts values (?, ?, ?)", (draw.below(200), step, value))
        self.connection.execute("delete from facts where id = ?", (draw.below(200),))
        self.connection.execute("commit")

    def digest(self):
        digest = hashlib.sha256()
        for row in self.connection.execute("select id, step, value from facts order by id"):
            digest.update("{} {} {}\n".format(*row).encode())
        return digest.hexdigest()

    def integrity(self):
        return self.connection.execute("pragma integrity_check").fetchone()[0]


class Checker:
    def __init__(self, salt, pages, step, directory):
        self.steps = step
        os.makedirs(directory, exist_ok=True)
        self.memory = Memory(salt, pages)
        self.files = Files(os.path.join(directory, "files"))
        self.database = Database(os.path.join(directory, "facts.sqlite"), salt)

    def do(self, step, salt):
        if step == self.steps + 1:
            draw = Draw(f"{salt}/{step}")
            self.memory.step(salt, step, draw)
            self.files.step(salt, step, draw)
            self.database.step(salt, step, draw)
            self.steps = step
        return {"step": self.steps, "chain": self.memory.chain.hex()}

    def press(self, mib):
        path, content = self.files.directory + ".pressure", fill("pressure", CHUNK)
        with open(path, "wb") as file:
            for _ in range(mib):
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.unlink(path)
        return {"written": mib}

    def digest(self, nonce, pages, full):
        found = {
            "step": self.steps,
            "chain": self.memory.chain.hex(),
            "sample": self.memory.sample(nonce, pages),
            "files": self.files.digest(),
            "database": self.database.digest(),
        }
        if full:
            found["memory"] = self.memory.content()
            found["files_from_disk"] = self.files.digest(from_disk=True)
            found["integrity"] = self.database.integrity()
        found["random"] = os.urandom(16).hex()
        found["time"] = time.time()
        return found

    def answer(self, target):
        path, _, query = target.partition("?")
        given = {name: int(value) for name, value in urllib.parse.parse_qsl(query)}
        if path == "/do":
            return self.do(given["step"], given["salt"])
        if path == "/press":
            return self.press(given["mib"])
        return self.digest(given["nonce"], given["pages"], given["full"] == 1)


def serve(checker, listener):
    while True:
        connection, _ = listener.accept()
        try:
            connection.settimeout(10)
            request = b""
            while b"\r\n\r\n" not in request:
                more = connection.recv(4096)
                if not more:
                    break
                request += more
            if not request:
                continue
            body = json.dumps(checker.answer(request.split(b" ", 2)[1].decode())).encode()
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            connection.sendall(head.encode() + b"connection: close\r\n\r\n" + body)
        except OSError:
            # Whoever asked is gone; what was done stays done.
            pass
        finally:
            connection.close()


def main():
    port, salt, pages, step = (int(argument) for argument in sys.argv[1:5])
    checker = Checker(salt, pages, step, sys.argv[5])
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))
    listener.listen(16)
    serve(checker, listener)


if __name__ == "__main__":
    main()
