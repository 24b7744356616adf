"""The process under attack: two devices, each with a server, until standard input ends.

usage: python target.py SOCKET OTHER-SOCKET
"""

from __future__ import annotations

import logging
import sys
import threading

from umdev.device import WO, Block, Device, DmaError, Interrupts, IoBar, MemoryBar, PciId, Register, Register64, Window
from umdev_vfio_user import Server

REPLY_TIMEOUT = 0.001
"""Seconds: a client that does not answer DMA must not hold the others of its messages for longer."""


class Registers(Block["Victim"]):
    """BAR 0: plain registers, and bells that make the device reach for memory."""

    ident = Register(0x00, reset=0xF00D)
    address = Register64(0x10)
    read_now = Register(0x18)
    bell = Register(0x1C)
    later = Register(0x20)
    raise_irq = Register(0x24)
    doorbell = Register(0x28, WO, doorbell=True)

    @read_now.on_read
    def fetch(self) -> int:
        return self.device.fetch()

    @bell.on_write
    @doorbell.on_write
    def rung(self, value: int) -> None:
        self.device.store(value)

    @later.on_write
    def deferred(self, value: int) -> None:
        self.device.after(0, lambda: self.device.store(value))

    @raise_irq.on_write
    def raised(self, value: int) -> None:
        self.device.interrupts.raise_(value % 4)
        self.device.interrupts.lower(value % 4)


class Ram(Block["Victim"]):
    """BAR 2."""

    window = Window(0x1000, 0x2000)


class Victim(Device):
    """One of everything that a message can reach."""

    pci = PciId(vendor=0x1234, device=0xF022, class_code=0xFF0000)
    interrupts = Interrupts(msi=4, msix=8, intx=True, msix_bar=4)
    registers = MemoryBar(0, Registers, size=4096)
    ram = MemoryBar(2, Ram, size=0x4000)
    table = MemoryBar(4, Block, size=0x1000)
    ports = IoBar(5, Registers, size=64)

    def fetch(self) -> int:
        """Whatever the client's memory holds."""
        try:
            return int.from_bytes(self.memory.read(self.registers.address.value, 4), "little")
        except DmaError:
            return 0xFFFFFFFF

    def store(self, value: int) -> None:
        """To wherever the client says."""
        try:
            self.memory.write(self.registers.address.value, value.to_bytes(4, "little") * (1 + value % 100))
        except DmaError:
            return


def main() -> None:
    """Serve both."""
    logging.disable()
    servers = [Server(Victim(), path=path, reply_timeout=REPLY_TIMEOUT) for path in sys.argv[1:3]]
    threads = [threading.Thread(target=server.run) for server in servers]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    for server in servers:
        server.stop()
    for thread in threads:
        thread.join()
    for server in servers:
        server.close()
        server.device.close()
    print("done", flush=True)


if __name__ == "__main__":
    main()
