"""A process with one device that watches guest memory; does what its standard input says, a JSON line for each.

Arguments: path of the socket to serve, and what hypervisor to name ("" for none).
"""

import json
import os
import signal
import sys
import threading

from umdev.device import Block, Device, DmaError, Iova, MemoryBar, PciId, ProtectMode, Register, UmdevError
from umdev.plugins import plugins

PAGE = 4096


class Registers(Block["Watcher"]):
    """BAR 0."""

    ident = Register(0x00, reset=0x57A7C4E2)


class Watcher(Device):
    """Arms pages, looks at them when it is told, arms them again."""

    pci = PciId(vendor=0x1AF4, device=0x10FF, class_code=0xFF0000)
    bar0 = MemoryBar(0, Registers, size=4096)

    def on_open(self) -> None:
        self.reset_counts()

    def reset_counts(self) -> None:
        self.snapshots: dict[int, bytes] = {}
        self.armed: set[int] = set()
        self.events = self.arms = self.early = self.unexpected = self.missed = 0
        self.shadow: dict[int, bytes] = {}
        self.rearm = True

    # TRAP.

    def trap(self, pages: list[int]) -> None:
        """Device lock held: no notification comes between arming and looking."""
        self.memory.protect(ProtectMode.TRAP, [Iova(page) for page in pages], self.stored)
        for page in pages:
            self.snapshots[page] = self.memory.read(page, PAGE)
            self.armed.add(page)
            self.arms += 1

    def stored(self, write) -> None:
        page = write.address
        self.events += 1
        if page not in self.armed:
            self.unexpected += 1
            return
        self.armed.discard(page)
        if self.memory.read(page, PAGE) != self.snapshots[page]:
            self.early += 1  # a store has landed already
        if self.rearm:
            self.after(0, lambda: self.trap([page]))

    def settle(self) -> None:
        """Nothing stores any more: whatever is armed still is as it was."""
        for page in self.armed:
            if self.memory.read(page, PAGE) != self.snapshots[page]:
                self.missed += 1

    # TRACK.

    def track(self, pages: list[int]) -> None:
        self.memory.protect(ProtectMode.TRACK, [Iova(page) for page in pages])
        for page in pages:
            self.shadow[page] = self.memory.read(page, PAGE)

    def collect(self) -> list[int]:
        changed = list(self.memory.collect())
        for page in changed:
            self.shadow[page] = self.memory.read(page, PAGE)
        return changed

    def stale(self) -> int:
        """Pages that differ from what was read when they were last reported."""
        return sum(self.memory.read(page, PAGE) != content for page, content in self.shadow.items())


class Commands:
    """What the standard input may ask for."""

    def __init__(self, device: Watcher, server) -> None:
        self.device = device
        self.server = server
        self._collecting = False
        self._thread: threading.Thread | None = None

    def trap(self, pages):
        with self.device.locked():
            self.device.trap(pages)

    def track(self, pages):
        self.device.track(pages)

    def collect(self):
        return self.device.collect()

    def collect_gone(self):
        """Without a look at them: their maps have gone."""
        return list(self.device.memory.collect())

    def collect_on(self):
        self._collecting = True
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def collect_off(self):
        self._collecting = False
        self._thread.join()

    def _collect(self):
        while self._collecting:
            self.device.collect()

    def untrap(self, pages):
        self.device.memory.unprotect(ProtectMode.TRAP, [Iova(page) for page in pages])
        with self.device.locked():
            self.device.armed.difference_update(pages)

    def report(self):
        device = self.device
        with device.locked():
            device.settle()
            return {
                "events": device.events,
                "arms": device.arms,
                "armed": len(device.armed),
                "early": device.early,
                "unexpected": device.unexpected,
                "missed": device.missed,
                "stale": device.stale(),
            }

    def read(self, page):
        return self.device.memory.read(page, PAGE).hex()

    def clear(self):
        with self.device.locked():
            self.device.reset_counts()

    def hold(self, seconds):
        """Keep the device lock."""
        import time

        with self.device.locked():
            time.sleep(seconds)

    def services(self):
        attachment = self.device.attachment
        return {
            "mechanisms": attachment.services.mechanisms,
            "refused": {name: str(why) for name, why in attachment.services.refused.items()},
            "client": self.server.client_pid,
        }


def main() -> None:
    path, hypervisor = sys.argv[1:3]
    device = Watcher()
    server = plugins().load_bus("vfio-user").serve(device, path=path, hypervisor=hypervisor or None)
    threading.Thread(target=server.run, daemon=True).start()
    commands = Commands(device, server)
    print(json.dumps({"result": os.getpid()}), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"result": getattr(commands, name)(*arguments)}
        except (UmdevError, DmaError) as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        print(json.dumps(answer), flush=True)
    server.close()
    device.close()


if __name__ == "__main__":
    main()
