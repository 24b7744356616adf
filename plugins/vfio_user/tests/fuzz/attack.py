"""Attacks a server of this process's own making: so many messages, in many connections.

usage: python attack.py [--messages N] [--seed N] [--limit SECONDS] [--plain] FOLDER

FOLDER gets the sanitized build (once) and the sockets. Fails when a message is neither answered nor the connection
ended within the limit, when an answer is wrong in form, when the second device of the process stops working, when
descriptors or mappings pile up, or when a sanitizer speaks.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from build import build, runtime
from messages import HEADER, Files, Sent, chaos, message

VERSION = HEADER.pack(0xFFF0, 1, 16 + 4, 0, 0) + b"\0\0\0\0"
ENABLE = HEADER.pack(0xFFF1, 10, 34, 0, 0) + struct.pack("<QII", 4, 7, 2) + b"\7\0"
BATCH = 24
CONNECTION = 2400
"""Messages in one connection, if it lives that long."""

WARM = 50
"""Connections after which the process has opened what it opens once (a watcher of unmask eventfds)."""


class Failure(Exception):
    """What the run is looking for."""


class Attacker:
    """One connection after another."""

    def __init__(self, path: Path, limit: float) -> None:
        self.path = str(path)
        self.limit = limit
        self.files = Files()
        self.slowest = 0.0
        self.sent = 0
        self.replies = 0
        self.connections = 0
        self.ended_by_server = 0
        self.dma = 0

    def connect(self) -> socket.socket:
        end = socket.socket(socket.AF_UNIX)
        end.connect(self.path)
        self.connections += 1
        self.buffer = b""
        return end

    def run(self, messages: int) -> None:
        """One connection of at most so many messages."""
        with self.connect() as end:
            if random.random() < 0.02:  # no negotiation at all
                end.sendall(message(1, self.files).data)
                self.sent += 1
                self.expect_end(end)
                return
            end.sendall(VERSION + ENABLE)
            self.collect(end, {0xFFF0, 0xFFF1})
            identity = 0
            while messages > 0:
                batch = [message(identity + n, self.files) for n in range(min(BATCH, messages))]
                identity = (identity + BATCH) % 0x8000
                messages -= len(batch)
                self.sent += len(batch)
                try:
                    self.send(end, batch)
                    alive = self.collect(end, {sent.number for sent in batch if sent.wants_reply})
                except (BrokenPipeError, ConnectionResetError):
                    alive = False
                if not alive:
                    self.ended_by_server += 1
                    return
            self.sent += 1
            try:
                end.sendall(chaos())
            except BrokenPipeError:
                return
            if random.random() < 0.5:
                self.drain(end)

    def send(self, end: socket.socket, batch: list[Sent]) -> None:
        """Joined where no descriptors are among them."""
        joined = b""
        for sent in batch:
            if sent.fds:
                if joined:
                    end.sendall(joined)
                    joined = b""
                socket.send_fds(end, [sent.data], sent.fds)
            else:
                joined += sent.data
        if joined:
            end.sendall(joined)

    def collect(self, end: socket.socket, expected: set[int]) -> bool:
        """Every expected reply, once; False if the server ends the connection instead."""
        started = time.monotonic()
        while expected:
            left = self.limit - (time.monotonic() - started)
            if left <= 0 or not select.select([end], [], [], left)[0]:
                raise Failure(f"{len(expected)} messages without an answer for {self.limit} s")
            try:
                data, ancillary, _, _ = end.recvmsg(1 << 18, socket.CMSG_SPACE(64))
            except ConnectionResetError:
                return False
            for _, _, content in ancillary:
                for (fd,) in struct.iter_unpack("<i", content):
                    os.close(fd)
            if not data:
                return False
            self.buffer += data
            self.take(end, expected)
        self.slowest = max(self.slowest, time.monotonic() - started)
        return True

    def take(self, end: socket.socket, expected: set[int]) -> None:
        while len(self.buffer) >= 16:
            number, command, size, flags, error = HEADER.unpack_from(self.buffer)
            if not 16 <= size <= (1 << 20) + 4096:
                raise Failure(f"a message of {size} bytes")
            if len(self.buffer) < size:
                return
            payload, self.buffer = self.buffer[16:size], self.buffer[size:]
            if flags & 0xF == 0:
                self.serve_dma(end, number, command, payload)
                continue
            if flags & 0x20 and (payload or not 0 < error < 4096):
                raise Failure(f"an error reply with errno {error} and {len(payload)} bytes")
            if number not in expected:
                raise Failure(f"a reply to {number} (command {command}), which waits for none")
            expected.remove(number)
            self.replies += 1

    def serve_dma(self, end: socket.socket, number: int, command: int, payload: bytes) -> None:
        """Answer well, badly or not at all."""
        self.dma += 1
        address, count = struct.unpack_from("<QQ", payload)
        odds = random.random()
        if odds < 0.005:
            return
        good = struct.pack("<QQ", address, count) + (bytes(count) if command == 11 else b"")
        if odds < 0.1:
            good = good[: random.randrange(len(good))]
        elif odds < 0.2:
            good, number = b"", number ^ 1
        refused = odds > 0.9
        flags = 0x21 if refused else 1
        body = b"" if refused else good
        end.sendall(HEADER.pack(number, command, 16 + len(body), flags, random.choice((0, 14, 1 << 31))) + body)

    def expect_end(self, end: socket.socket) -> None:
        end.settimeout(self.limit)
        try:
            while end.recv(1 << 16):
                pass
        except TimeoutError:
            raise Failure("a connection without VERSION goes on") from None
        except ConnectionResetError:
            return

    def drain(self, end: socket.socket) -> None:
        end.settimeout(0.002)
        try:
            while end.recv(1 << 16):
                pass
        except (TimeoutError, ConnectionResetError):
            return


class Bystander:
    """A well-behaved client of the other device."""

    def __init__(self, path: Path, limit: float) -> None:
        self.limit = limit
        self.end = socket.socket(socket.AF_UNIX)
        self.end.connect(str(path))
        self.end.settimeout(limit)
        self.call(VERSION)
        self.call(ENABLE)
        self.slowest = 0.0

    def call(self, data: bytes) -> bytes:
        self.end.sendall(data)
        head = self.end.recv(16, socket.MSG_WAITALL)
        _, _, size, flags, _ = HEADER.unpack(head)
        if flags != 1:
            raise Failure("the second device refuses")
        return self.end.recv(size - 16, socket.MSG_WAITALL) if size > 16 else b""

    def check(self) -> None:
        started = time.monotonic()
        try:
            reply = self.call(HEADER.pack(1, 9, 32, 0, 0) + struct.pack("<QII", 0, 0, 4))
        except TimeoutError:
            raise Failure(f"the second device has not answered for {self.limit} s") from None
        if reply[16:] != b"\x0d\xf0\0\0":
            raise Failure(f"the second device reads {reply[16:].hex()}")
        self.slowest = max(self.slowest, time.monotonic() - started)


def settled(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Descriptors and mappings of the target, between two connections: once they stay as they are for a while."""
    base = Path(f"/proc/{process.pid}")
    found, same = (-1, -1), 0
    for _ in range(100):
        time.sleep(0.05)
        maps = [line for line in (base / "maps").read_text().splitlines() if "memfd" in line or "eventfd" in line]
        now = sum(1 for _ in (base / "fd").iterdir()), len(maps)
        found, same = now, same + 1 if now == found else 0
        if same == 4:
            break
    return found


def attack(folder: Path, messages: int, limit: float, *, sanitize: bool) -> None:
    """Build, start, attack, judge."""
    environment = dict(os.environ)
    if sanitize:
        package = folder / "build"
        if not package.exists():
            build(package)
        environment |= {
            "LD_PRELOAD": " ".join(runtime()),
            "PYTHONPATH": str(package),
            "ASAN_OPTIONS": "detect_leaks=0:handle_sigbus=0:handle_segv=1:abort_on_error=0",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        }
    paths = [folder / "victim", folder / "bystander"]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("target.py")), *map(str, paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise Failure(f"the target does not start: status {process.wait()}")
    try:
        attacker, bystander = Attacker(paths[0], limit), Bystander(paths[1], limit)
        started = time.monotonic()
        before: tuple[int, int] | None = None
        while attacker.sent < messages:
            try:
                attacker.run(min(CONNECTION, messages - attacker.sent))
            except (BrokenPipeError, ConnectionResetError):
                attacker.ended_by_server += 1
            bystander.check()
            if attacker.connections == WARM:
                before = settled(process)
        last = settled(process)
        if process.poll() is not None:
            raise Failure(f"the target ended: status {process.returncode}")
        if before is not None and (last[0] > before[0] or last[1] > before[1]):
            raise Failure(f"descriptors and mappings: {before} after {WARM} connections, {last} at the end")
        print(
            f"{attacker.sent} messages in {time.monotonic() - started:.1f} s, {attacker.connections} connections "
            f"({attacker.ended_by_server} ended by the server), {attacker.replies} replies, "
            f"{attacker.dma} DMA requests, "
            f"slowest batch {attacker.slowest * 1000:.1f} ms, second device {bystander.slowest * 1000:.1f} ms"
        )
        bystander.end.close()
        out, _ = process.communicate("", timeout=60)
        if (out, process.returncode) != ("done\n", 0):
            raise Failure(f"the target ended with status {process.returncode}")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--limit", type=float, default=0.1, help="seconds to an answer")
    parser.add_argument("--plain", action="store_true", help="attack the installed build, without sanitizers")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    random.seed(seed)
    attack(options.folder, options.messages, options.limit, sanitize=not options.plain)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"FAILED: {failure}")
