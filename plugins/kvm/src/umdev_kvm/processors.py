"""The threads that run the virtual processors, and how a run ends."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from umdev.errors import HypervisorError, StateError

from ._fast import ffi, lib
from .outcome import Outcome, OutcomeKind
from .vm import check, failure

if TYPE_CHECKING:
    from .machine import Machine

JOIN_TIMEOUT = 10.0
"""Seconds for a processor's thread to come back once it is told: the handler that runs then must return."""
_STUCK = f"a device's handler has not returned for {JOIN_TIMEOUT} s: its processor can't be stopped"
_LONGEST_WAIT = threading.TIMEOUT_MAX / 2
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
    """Runs all processors of a machine, each in a thread, until one of them ends the run or its time is over.

    Every end that a processor brings is kept until a run has told it: two may end at once, or one as the time is over.
    `stop` and `running` are for any thread.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._changed = threading.Condition()  # of all that follows
        self._entered = False
        self._left = 0  # processors' threads that have not come back
        self._stop = False
        self._ends: deque[Outcome | BaseException] = deque()
        self._closed = False
        self._threads: list[threading.Thread] = []

    @property
    def running(self) -> bool:
        """From `enter` to `leave`, and as long as a processor's thread has not come back."""
        return self._entered or self._left > 0

    @property
    def stuck(self) -> bool:
        """At the end of `run`: whether a processor's thread has not come back, since a device's handler has not."""
        return self._left > 0

    def enter(self) -> None:
        """A run begins, and nobody else may touch the machine. Raises: StateError (running, closed)."""
        with self._changed:
            if self._closed:
                raise StateError("run() needs an open machine; this one is closed")
            if self.running:
                raise StateError("run() needs a machine that is not running")
            self._entered = True

    def leave(self) -> None:
        """It is over, with everything that belongs to it."""
        with self._changed:
            self._entered = False
            self._changed.notify_all()

    def run(self, deadline: float) -> Outcome:
        """Run until the outcome is clear, between `enter` and `leave`.

        A stop that was asked for comes first, then what processors have brought; only without either do they run.

        Raises: what a processor's thread met; StateError if one does not return.
        """
        if not self._stop and not self._ends:
            self._run_until(deadline)
        with self._changed:
            if self._stop:
                self._stop = False
                return Outcome(OutcomeKind.STOPPED)
            end = self._ends.popleft() if self._ends else Outcome(OutcomeKind.TIME_LIMIT)
        if isinstance(end, BaseException):
            raise end
        if end.kind in (OutcomeKind.TIME_LIMIT, OutcomeKind.TRIPLE_FAULT):
            return Outcome(end.kind, end.value, end.vcpu, self._where(max(0, end.vcpu)))
        return end

    def stop(self) -> None:
        """End the run under way, else the next one, with STOPPED."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()

    def forget(self) -> None:
        """The processors begin anew: what they have brought is of their old life. Not while they run."""
        with self._changed:
            self._ends.clear()

    def finish(self) -> None:
        """Finish the accesses that the last run ended in, which KVM does at the next entry. Not while they run.

        Else new registers would meet the old access: its result, and the address of the instruction after it. What KVM
        refuses here it refuses at the next run, which says so.
        """
        event = ffi.new("umdev_kvm_event *")
        for index in range(self._machine.vcpus):
            vcpu = self._machine.vm.vcpu(index)
            kind = lib.umdev_kvm_vcpu_finish(vcpu, event)
            while kind not in (lib.UMDEV_KVM_STOPPED, lib.UMDEV_KVM_FAILED):
                self._follow(kind, event)
                kind = lib.umdev_kvm_vcpu_finish(vcpu, event)

    def close(self) -> None:
        """End a run of another thread, wait until it has returned, and let none begin. Raises: StateError."""
        with self._changed:
            self._closed = True  # none begins from now on
            if self.running:
                self._stop = True
                self._changed.notify_all()
            try:
                if not self._changed.wait_for(lambda: not self.running, 2 * JOIN_TIMEOUT):
                    raise StateError(_STUCK)
            except BaseException:
                self._closed = False
                raise

    def _run_until(self, deadline: float) -> None:
        vm, count = self._machine.vm, self._machine.vcpus
        check(lib.umdev_kvm_begin(vm.pointer), "sigaction")
        with self._changed:
            self._left = count
        self._threads = []
        try:
            for index in range(count):
                name = f"kvm processor {index}"
                thread = threading.Thread(target=self._work, args=(index,), name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
            with self._changed:
                left = min(max(0.0, deadline - time.monotonic()), _LONGEST_WAIT)
                self._changed.wait_for(lambda: self._stop or self._ends or not self._left, left)
        finally:
            with self._changed:
                self._left -= count - len(self._threads)  # some could not be started
            self._collect()

    def _collect(self) -> None:
        lib.umdev_kvm_end(self._machine.vm.pointer)
        end = time.monotonic() + JOIN_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            raise StateError(_STUCK)
        lib.umdev_kvm_drain(self._machine.vm.pointer)
        lib.umdev_kvm_ring(self._machine.vm.pointer, ffi.NULL)

    def _work(self, index: int) -> None:
        try:
            end: Outcome | BaseException | None = self._until_end(index)
        except BaseException as caught:  # noqa: BLE001 - the thread that called run() raises it
            end = caught
        with self._changed:
            self._left -= 1
            if end is not None:
                self._ends.append(end)
            self._changed.notify_all()

    def _until_end(self, index: int) -> Outcome | None:
        """None: the run was ended from outside."""
        vcpu, event = self._machine.vm.vcpu(index), ffi.new("umdev_kvm_event *")
        while True:
            kind = lib.umdev_kvm_vcpu_run(vcpu, event)
            if kind in _ENDS:
                return Outcome(_ENDS[kind], int(event.value), index)
            if kind == lib.UMDEV_KVM_STOPPED:
                return None
            if not self._follow(kind, event):
                raise self._broken(index, kind, event)

    def _follow(self, kind: int, event: Any) -> bool:
        """Do what a write to configuration space or to an MSI-X table asks for; whether it is one."""
        bridge = self._machine.bridge
        if kind == lib.UMDEV_KVM_CONFIG:
            bridge.synchronise(event.slot)
        elif kind == lib.UMDEV_KVM_VECTOR:
            data = int(event.value).to_bytes(8, "little")[: event.length]
            bridge.write_vector(event.slot, event.detail, event.address, data)
        else:
            return False
        return True

    def _broken(self, index: int, kind: int, event: Any) -> HypervisorError:
        detail, value = int(event.detail), int(event.value)
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
