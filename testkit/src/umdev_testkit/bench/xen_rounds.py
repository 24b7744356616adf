"""The Xen row's side in dom0.

usage: python -m umdev_testkit.bench.xen_rounds ORDERS ANSWERS    (two named pipes)
       python -m umdev_testkit.bench.xen_rounds DOMAIN            (serves the bench's device to that domain)

The first makes two domains with one payload: the floor's is answered by the bare-C model of the test kit, the
subject's by umdev-xen in a process of its own, as users run it. Each line `floor` or `subject` that comes in is one
round, answered by a line of JSON: nanoseconds per read.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from umdev_testkit.xen_domain import PAGE, XenDomain
from umdev_testkit.xen_payloads import payload

BATCH = 20
BATCHES = 20
BAR = 0xF000_0000
SLOT = 4
RECORDS = 0x2_0000
FREQUENCY = 0x1_F000
SECONDS = 300.0  # that one round may take on a busy machine
READY = "ready\n"

# The domain's own clock times both alike. Xen's CPUID leaf 0x40000003 has its frequency in ECX, in kHz
# (xen/arch-x86/cpuid.h). A record: ticks of a batch, and the value that its last read gave.
_PAYLOAD = f"""
    mov eax, 0x40000003
    xor ecx, ecx
    cpuid
    mov [{FREQUENCY:#x}], ecx
    config_write {SLOT}, 0x10, {BAR:#x}
    config_write {SLOT}, 4, 2
    mov ebx, {BAR:#x}
round:
    mov esi, {BATCHES}
    mov edi, {RECORDS:#x}
batch:
    rdtsc
    mov ebp, eax
    mov ecx, {BATCH}
next:
    mov eax, [ebx]
    dec ecx
    jnz next
    mov [edi + 4], eax
    rdtsc
    sub eax, ebp
    mov [edi], eax
    add edi, 8
    dec esi
    jnz batch
    exit 0
    jmp round
"""


class Rounds:
    """Rounds of one domain."""

    def __init__(self, domain: XenDomain) -> None:
        self._domain = domain
        self._before: int | None = None
        domain.load(payload(_PAYLOAD))

    def run(self) -> list[float]:
        """One round. Raises: RuntimeError when a read has not reached the device; as `XenDomain.run`."""
        self._domain.run(SECONDS)
        (kilohertz,) = struct.unpack("<I", self._domain.read(FREQUENCY, 4))
        records = list(struct.iter_unpack("<II", self._domain.read(RECORDS, 8 * BATCHES)))
        for _, value in records:
            if self._before is not None and (value - self._before) % 2**32 != BATCH:
                raise RuntimeError("the payload's reads did not all reach the device")
            self._before = value
        return [ticks / kilohertz * 1e6 / BATCH for ticks, _ in records]


def rounds(orders: Path, answers: Path) -> None:
    """Run rounds until an empty order comes."""
    with ExitStack() as stack:
        floor = Rounds(stack.enter_context(XenDomain(counter=(BAR, PAGE))))
        domain = stack.enter_context(XenDomain())
        device = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name, str(domain.domid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
        stack.callback(device.kill)
        assert device.stdout is not None
        if device.stdout.readline() != READY.encode():
            raise RuntimeError("the bench's device could not be served")
        sides = {"floor": floor, "subject": Rounds(domain)}
        with answers.open("w") as out:
            out.write(READY)
        while side := orders.read_text().strip():  # whoever writes one closes the pipe after it
            _answer(answers, sides[side])


def _answer(answers: Path, side: Rounds) -> None:
    try:
        text = json.dumps(side.run())
    except Exception as error:
        text = json.dumps(f"{type(error).__name__}: {error}")
        raise
    finally:
        with answers.open("w") as out:
            out.write(text + "\n")


def serve(domid: int, ready: IO[str]) -> None:
    """Serve the bench's device until standard input ends."""
    from umdev_xen import Domain

    from .device import BenchDevice

    with BenchDevice() as device, Domain(domid) as domain:
        domain.plug(device, slot=SLOT)
        ready.write(READY)
        ready.flush()
        sys.stdin.read()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(int(sys.argv[1]), sys.stdout)
    else:
        rounds(Path(sys.argv[1]), Path(sys.argv[2]))
