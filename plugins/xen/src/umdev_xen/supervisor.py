"""Follows a domain through its reboots: each is a new domain, and a process that was restricted serves only one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from typing import TYPE_CHECKING

from .toolstack import find_domain, named, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import NoReturn

__all__ = ["Supervisor"]

_ENDING = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger("umdev.xen")


class Supervisor:
    """Runs `work(domid)` in a process of its own for each life of a domain. Main thread only, no other threads.

    SIGTERM and SIGINT end the worker first, then this process's `run`.
    """

    def __init__(self, domain: str, work: Callable[[int], int], *, once: bool = False) -> None:
        """`domain`: a name, which survives reboots, or a number, which does not. `once`: one life is enough."""
        self._domain = domain
        self._work = work
        self._once = once or domain.isdecimal()
        self._worker: int | None = None
        self._over = False

    def run(self) -> int:
        """Serve one life of the domain after the other, until a signal comes, or a worker fails: its exit code.

        Between two lives, and before the first, it waits for a domain of that name. One life is all for `once`, and for
        a domain given by its number. Raises: NotSupported without xenstore.
        """
        self._wake, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with self._ended_by_signals(write):
                return self._follow()
        finally:
            os.close(self._wake)
            os.close(write)

    def _follow(self) -> int:
        domid: int | None = find_domain(self._domain) if self._domain.isdecimal() else named(self._domain)
        while not self._over:
            if domid is None:
                _log.info("waiting for a domain named %s", self._domain)
                domid = wait_for(self._domain, None, self._wake)
                if domid is None:
                    return 0
            code = self._serve(domid)
            if code or self._once or self._over:
                return code
            domid = wait_for(self._domain, domid, self._wake)
        return 0

    def _serve(self, domid: int) -> int:
        """One life; the worker's exit code."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # else one may come to the worker while `end` has it
        try:
            worker = os.fork()
            if worker == 0:
                self._live(domid, before)
            self._worker = worker
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self._over:  # the signal came before there was a worker
            os.kill(worker, signal.SIGTERM)
        try:
            _, status = os.waitpid(worker, 0)
        finally:
            self._worker = None
        code = os.waitstatus_to_exitcode(status)
        return 0 if self._over and -code in _ENDING else code  # it had no handlers yet

    def _live(self, domid: int, mask: set[int]) -> NoReturn:
        """The worker's process."""
        code = 1
        try:
            for number in _ENDING:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = self._work(domid)
        except BaseException:  # noqa: BLE001 - the process ends here, whatever it is
            _log.exception("domain %d", domid)
        finally:
            logging.shutdown()
            os._exit(code)

    @contextlib.contextmanager
    def _ended_by_signals(self, write: int) -> Iterator[None]:
        def end(_number: int, _frame: FrameType | None) -> None:
            self._over = True
            with contextlib.suppress(BlockingIOError):
                os.write(write, b"!")
            if self._worker is not None:
                with contextlib.suppress(ProcessLookupError):  # it has been waited for this very moment
                    os.kill(self._worker, signal.SIGTERM)

        before = {number: signal.signal(number, end) for number in _ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
