"""The threads that run the virtual processors, and how a run ends."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from umdev.errors import HypervisorError, StateError

from ._fast import ffi, lib
from .outcome import Outcome, OutcomeKind
from .vm import failure

if TYPE_CHECKING:
    from .machine import Machine

JOIN_TIMEOUT = 10.0
"""Seconds for a processor's thread to come back once it is told: the handler that runs then must return."""
_ENDS = {
    lib.UMDEV_KVM_EXITED: OutcomeKind.EXIT,
    lib.UMDEV_KVM_RESET: OutcomeKind.RESET,
    lib.UMDEV_KVM_POWERED_OFF: OutcomeKind.POWER_OFF,
    lib.UMDEV_KVM_SHUT_DOWN: OutcomeKind.TRIPLE_FAULT,
}
_SUBERRORS = {
    1: "it can't emulate an instruction",
    2: "two events at once",
    3: "an event it can't deliver",
    4: "an exit of the hardware that it does not expect",
}
"""linux/kvm.h: KVM_INTERNAL_ERROR_*."""


class Processors:
    """Runs all processors of a machine, each in a thread, until one of them ends the run or its time is over."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._left = 0
        self._outcome: Outcome | None = None
        self._failure: BaseException | None = None

    @property
    def running(self) -> bool:
        """Is a processor's thread under way?"""
        return self._left > 0

    def run(self, deadline: float) -> Outcome:
        """Run until the outcome is clear. Raises: what a processor's thread met; StateError if one does not return."""
        vm = self._machine.vm
        with self._changed:
            self._outcome = self._failure = None
            self._left = self._machine.vcpus
        lib.umdev_kvm_begin(vm.pointer)
        self._threads = []
        try:
            for index in range(self._machine.vcpus):
                name = f"kvm processor {index}"
                thread = threading.Thread(target=self._work, args=(index,), name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
            with self._changed:
                while self._outcome is None and self._failure is None and self._left:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        self._outcome = Outcome(OutcomeKind.TIME_LIMIT)
                        break
                    self._changed.wait(left)
        finally:
            with self._changed:
                self._left -= self._machine.vcpus - len(self._threads)  # some could not be started
            self._collect()
        if self._failure is not None:
            raise self._failure
        assert self._outcome is not None, "every thread says why it ended"
        if self._outcome.kind in (OutcomeKind.TIME_LIMIT, OutcomeKind.TRIPLE_FAULT):
            vcpu = max(0, self._outcome.vcpu)
            return Outcome(self._outcome.kind, self._outcome.value, self._outcome.vcpu, self._where(vcpu))
        return self._outcome

    def stop(self) -> None:
        """End the run under way with STOPPED."""
        with self._changed:
            if self._left and self._outcome is None:
                self._outcome = Outcome(OutcomeKind.STOPPED)
                self._changed.notify_all()

    def close(self) -> None:
        """End a run of another thread, and wait for the processors' threads. Raises: StateError."""
        self.stop()
        if self._left:
            self._collect()

    def _collect(self) -> None:
        lib.umdev_kvm_end(self._machine.vm.pointer)
        end = time.monotonic() + JOIN_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            raise StateError(
                f"a device's handler has not returned for {JOIN_TIMEOUT} s: its processor can't be stopped"
            )
        lib.umdev_kvm_drain(self._machine.vm.pointer)
        lib.umdev_kvm_ring(self._machine.vm.pointer, ffi.NULL)

    def _work(self, index: int) -> None:
        try:
            outcome: Outcome | None = self._until_end(index)
            error = None
        except BaseException as caught:  # noqa: BLE001 - the thread that called run() raises it
            outcome, error = None, caught
        with self._changed:
            self._left -= 1
            if self._outcome is None and self._failure is None:
                self._outcome, self._failure = outcome, error
            self._changed.notify_all()

    def _until_end(self, index: int) -> Outcome:
        machine = self._machine
        vm = machine.vm
        vcpu, event = vm.vcpu(index), ffi.new("umdev_kvm_event *")
        while True:
            kind = lib.umdev_kvm_vcpu_run(vcpu, event)
            if kind == lib.UMDEV_KVM_CONFIG:
                machine.bridge.synchronise(event.slot)
            elif kind == lib.UMDEV_KVM_VECTOR:
                data = int(event.value).to_bytes(8, "little")[: event.length]
                machine.bridge.write_vector(event.slot, event.detail, event.address, data)
            elif kind in _ENDS:
                return Outcome(_ENDS[kind], int(event.value), index)
            elif kind == lib.UMDEV_KVM_STOPPED:
                return Outcome(OutcomeKind.STOPPED)
            else:
                raise self._broken(index, kind, event)

    def _broken(self, index: int, kind: int, event: object) -> HypervisorError:
        detail, value = int(event.detail), int(event.value)  # type: ignore[attr-defined]  # cffi's struct
        if kind == lib.UMDEV_KVM_FAILED:
            return failure("KVM_RUN", -detail)
        if kind == lib.UMDEV_KVM_INTERNAL:
            what = f"KVM_EXIT_INTERNAL_ERROR {detail} ({_SUBERRORS.get(detail, 'for a reason of its own')}), {value:#x}"
        elif kind == lib.UMDEV_KVM_ENTRY_FAILED:
            what = f"KVM_EXIT_FAIL_ENTRY: the processor refuses the guest's state, reason {value:#x}"
        else:
            what = f"exit reason {detail}, which this machine does not know"
        error = HypervisorError(f"processor {index} can't go on: {what}; {self._where(index)}")
        error.call = "KVM_RUN"
        return error

    def _where(self, index: int) -> str:
        """Registers for people."""
        found = self._machine.vm.registers(index)
        names = ("rip", "rsp", "rax", "cr0", "cr2", "cr3", "efer")
        return " ".join(f"{name}={found[name]:#x}" for name in names)
