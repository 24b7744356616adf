"""How a run ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class OutcomeKind(enum.Enum):
    """Why `Machine.run` came back."""

    EXIT = "exit"
    """The guest wrote to the exit port (0xF4): the value is in `Outcome.value`."""
    RESET = "reset"
    """It asked for a reset."""
    POWER_OFF = "power-off"
    TRIPLE_FAULT = "triple-fault"
    """A fault while a fault was delivered, twice over: a PC would reset."""
    TIME_LIMIT = "time-limit"
    """The time was over; the guest can run on."""
    STOPPED = "stopped"
    """`Machine.stop` was called, meanwhile or since the last run; the guest can run on."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`vcpu` is the processor that ended the run, -1 for what came from outside; `where` its registers for people."""

    kind: OutcomeKind
    value: int = 0
    vcpu: int = -1
    where: str = ""

    def __str__(self) -> str:
        value = f" {self.value:#x}" if self.kind is OutcomeKind.EXIT else ""
        by = f" by processor {self.vcpu}" if self.vcpu >= 0 else ""
        return f"{self.kind.value}{value}{by}{f' at {self.where}' if self.where else ''}"
