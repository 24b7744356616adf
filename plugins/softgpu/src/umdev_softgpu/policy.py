"""Whose turn it is: the interface of a scheduler's policy, and weighted fair shares."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .limits import FOREVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .client import Client


class Turn(NamedTuple):
    """What the engine does next: `client` runs, or nobody does, for at most `ns`."""

    client: Client | None
    ns: int = FOREVER


class Policy(abc.ABC):
    """Called with the scheduler's lock held: a policy keeps no lock, takes none, and never blocks.

    Times are nanoseconds of the scheduler's clock.
    """

    empty_ns = 0
    """For how long the engine was kept for clients that had no work; 0 where nobody has time of its own."""

    def join(self, client: Client, now_ns: int) -> None:  # noqa: B027  # not every policy minds
        """A client has come; it has no work yet."""

    def leave(self, client: Client, now_ns: int) -> None:  # noqa: B027  # not every policy minds
        """A client has gone."""

    def wake(self, client: Client, now_ns: int) -> None:  # noqa: B027  # not every policy minds
        """A client that had no work has some."""

    def charge(self, client: Client, start_ns: int, used_ns: int) -> None:  # noqa: B027  # not every policy minds
        """A client has used the engine."""

    @abc.abstractmethod
    def choose(self, ready: Sequence[Client], now_ns: int) -> Turn:
        """Among those that may run (perhaps nobody): who does."""

    def preempts(self, waker: Client, running: Client, ran_ns: int) -> bool:  # noqa: ARG002  # for overriders
        """Whether the step of `running`, which has taken `ran_ns` so far, shall end early for a client that woke."""
        return False


@dataclass(slots=True)
class _Account:
    virtual: int = 0  # nanoseconds used, times SCALE, over weight
    rest: int = 0  # what the division left over: nothing is ever lost
    woken: int = 0  # the later, the greater


class FairShare(Policy):
    """Each client with work gets time in proportion to its weight; who has none does without, and saves nothing up.

    A client that wakes goes before whoever has had more than it, so a client that asks for little waits for little.
    """

    SCALE = 1 << 20

    def __init__(self) -> None:
        self._accounts: dict[Client, _Account] = {}
        self._floor = 0  # the least virtual time of those who run
        self._wakes = 0

    def join(self, client: Client, now_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Starts level with those who run."""
        self._accounts[client] = _Account(self._floor)

    def leave(self, client: Client, now_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Its account goes with it."""
        self._accounts.pop(client, None)

    def wake(self, client: Client, now_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Time that it did not use while the others ran is gone."""
        account = self._accounts[client]
        account.virtual = max(account.virtual, self._floor)
        self._wakes += 1
        account.woken = self._wakes

    def charge(self, client: Client, start_ns: int, used_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Virtual time passes the more slowly, the greater the weight."""
        account = self._accounts.get(client)
        if account is not None:
            passed, account.rest = divmod(used_ns * self.SCALE + account.rest, client.weight)
            account.virtual += passed

    def choose(self, ready: Sequence[Client], now_ns: int) -> Turn:  # noqa: ARG002  # Policy's interface
        """Who has had least; of those who have had the same, who woke last."""
        if not ready:
            return Turn(None)
        chosen = min(ready, key=self._turn)
        self._floor = max(self._floor, self._accounts[chosen].virtual)
        return Turn(chosen)

    def _turn(self, client: Client) -> tuple[int, int]:
        account = self._accounts[client]
        return account.virtual, -account.woken

    def preempts(self, waker: Client, running: Client, ran_ns: int) -> bool:
        """When it has had less than the running one, what that does just now included."""
        theirs = self._accounts[running].virtual + ran_ns * self.SCALE // running.weight
        return self._accounts[waker].virtual < theirs
