"""A channel's commands being run: methods to the host or to the engine on a subchannel, a turn at a time."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from . import copy_engine
from .copy_engine import CopyEngine
from .host import METHODS_END, SET_OBJECT, Host
from .trouble import HostError, LaunchError, PageFault, PbdmaError

if TYPE_CHECKING:
    from umdev_softgpu import Budget, Space

    from .channel import Channel
    from .copy_launch import Launch
    from .pusher import Method, Pusher
    from .user_page import UserPage

METHOD_COST = 8192
"""Budget units of a method: what it takes to look at it, as bytes that could be copied meanwhile."""
COPY_SUBCHANNEL = 4
"""Where drivers put the copy engine, and where it is before anything is bound."""


class Outcome(enum.Enum):
    """Of a turn."""

    DONE = enum.auto()
    """The ring is empty."""
    MORE = enum.auto()
    """The budget is spent."""
    BLOCKED = enum.auto()
    """A semaphore is not what it waits for."""
    FAULTED = enum.auto()
    """A page is not there: see `fault`."""


class Execution:
    """Runs on the scheduler's thread alone; what the driver is told of takes the device lock by itself."""

    def __init__(self, channel: Channel, space: Space, pusher: Pusher, user_page: UserPage) -> None:
        self.channel, self.space, self.pusher, self.user_page = channel, space, pusher, user_page
        self.host = Host()
        self.engines: dict[int, CopyEngine] = {COPY_SUBCHANNEL: CopyEngine()}
        self.fault: PageFault | None = None
        self._launch: Launch | None = None
        self._again: Method | None = None

    @property
    def now_ns(self) -> int:
        """What semaphores call the time: PTIMER's."""
        return self.channel.vgpu.clock.now_ns

    def run(self, budget: Budget) -> Outcome:
        """Until the ring is empty, the budget is spent, a semaphore blocks, or a page is not there."""
        outcome: Outcome | None = None
        while outcome is None:
            if budget.stopped or not budget.left:
                return Outcome.MORE
            try:
                outcome = self._next(budget)
            except HostError as error:
                self._again = None
                self.channel.report_host_error(self, error)
                if error.error is PbdmaError.GPPTR:  # nothing comes of it before the driver writes another
                    return Outcome.DONE
            except LaunchError as error:
                self._launch = None
                self.channel.report_launch_error(self, error)
            except PageFault as fault:
                self.fault = fault
                return Outcome.FAULTED
        return outcome

    def _next(self, budget: Budget) -> Outcome | None:
        if self._launch is not None:
            if not self._launch.step(budget):
                return Outcome.MORE
            self._launch = None
            return None
        budget.spend(METHOD_COST)
        method = self._again or self.pusher.take(self.user_page)
        if self.pusher.finished:
            self.pusher.finished = False
            self.user_page.show(self.pusher.get, self.pusher.last)
        if method is None:
            return Outcome.DONE
        self._again = method
        try:
            if not self._execute(*method):
                return Outcome.BLOCKED
        except HostError as error:
            error.subchannel = method.subchannel  # which host and engines don't know
            raise
        self._again = None
        return None

    def _execute(self, subchannel: int, method: int, data: int) -> bool:
        if method == SET_OBJECT:
            self._bind(subchannel, data & 0xFFFF)
        elif method < METHODS_END:
            return self.host.execute(self, method, data)
        elif (engine := self.engines.get(subchannel)) is None:
            raise HostError(PbdmaError.DEVICE, method, data)
        else:
            self._again = None
            self._launch = engine.execute(self, method, data)
        return True

    def _bind(self, subchannel: int, class_: int) -> None:
        if class_ != copy_engine.CLASS:
            self.engines.pop(subchannel, None)
            raise HostError(PbdmaError.DEVICE, SET_OBJECT, class_)
        self.engines.setdefault(subchannel, CopyEngine())  # its state is the channel's, and stays

    # What methods use.

    def non_stall_interrupt(self) -> None:
        """Tell the driver that something is done; it looks at semaphores to find out what."""
        self.channel.non_stall_interrupt(self)

    def copy_done(self, interrupt: int) -> None:
        """A launch is through: its interrupt, 0 none, 1 blocking, 2 not."""
        if interrupt:
            self.channel.copy_interrupt(self, interrupt)
