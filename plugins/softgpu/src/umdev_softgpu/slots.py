"""Policies of time slices: best effort, equal share and fixed share, as vGPU hosts offer them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import InvalidArgument

from .policy import Policy, Turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .client import Client

SLICE_NS = 2_000_000


def _slice(slice_ns: int) -> int:
    if slice_ns <= 0:
        raise InvalidArgument(f"a slice is longer than {slice_ns} ns")
    return slice_ns


class BestEffort(Policy):
    """Round robin among the clients with work, a slice each; the engine never waits while somebody has work.

    What a step takes beyond its slice is paid for out of the client's next ones, so long steps gain nothing.
    """

    def __init__(self, slice_ns: int = SLICE_NS) -> None:
        """Raises: InvalidArgument for a slice that is not above 0."""
        self.slice_ns = _slice(slice_ns)
        self._used: dict[Client, int] = {}  # of the present slice, or of the next ones; in the order of turns
        self._current: Client | None = None

    def join(self, client: Client, now_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Comes last."""
        self._used[client] = 0

    def leave(self, client: Client, now_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """The slice that it had not used is the next one's."""
        self._used.pop(client, None)
        if client is self._current:
            self._current = None

    def charge(self, client: Client, start_ns: int, used_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """A slice that is used up ends the turn."""
        if client in self._used:
            self._used[client] += used_ns
            if self._used[client] >= self.slice_ns and client is self._current:
                self._used[client] -= self.slice_ns
                self._current = None
                self._to_the_end(client)

    def choose(self, ready: Sequence[Client], now_ns: int) -> Turn:  # noqa: ARG002  # Policy's interface
        """Whoever has some of a slice left; else the next in the round."""
        if not ready:
            return Turn(None)
        if self._current is None or self._current not in ready:
            if self._current is not None:  # it has no more to do: no slice is saved up
                self._used[self._current] = 0
                self._to_the_end(self._current)
            self._current = self._first(set(ready))
        return Turn(self._current, self.slice_ns - self._used[self._current])

    def _first(self, ready: set[Client]) -> Client:
        """In the order of turns, each of which takes a slice from what is owed."""
        rounds = min(self._used[client] // self.slice_ns for client in ready)
        for client in ready:
            self._used[client] -= rounds * self.slice_ns
        for client in [client for client in self._used if client in ready]:
            if self._used[client] < self.slice_ns:
                return client
            self._used[client] -= self.slice_ns
            self._to_the_end(client)
        raise AssertionError("somebody owes less than a slice")

    def _to_the_end(self, client: Client) -> None:
        self._used[client] = self._used.pop(client)


class _Slots(Policy):
    """Time is cut into slots that come round; a client runs in its own only, and one that is not used stays empty."""

    def __init__(self, slice_ns: int) -> None:
        self.slice_ns = _slice(slice_ns)
        self._owners: list[Client | None] = []

    def leave(self, client: Client, now_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Its slot stays empty from now on."""
        if client in self._owners:
            self._owners[self._owners.index(client)] = None

    def choose(self, ready: Sequence[Client], now_ns: int) -> Turn:
        """The owner of the present slot, to its end."""
        if not self._owners:
            return Turn(None)
        owner = self._owners[now_ns // self.slice_ns % len(self._owners)]
        left = self.slice_ns - now_ns % self.slice_ns
        return Turn(owner if owner in ready else None, left)


class EqualShare(_Slots):
    """As many slots as clients: each has the same share, whether the others use theirs or not."""

    def __init__(self, slice_ns: int = SLICE_NS) -> None:
        """Raises: InvalidArgument for a slice that is not above 0."""
        super().__init__(slice_ns)

    def join(self, client: Client, now_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Shares shrink."""
        self._owners.append(client)

    def leave(self, client: Client, now_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Shares grow."""
        if client in self._owners:
            self._owners.remove(client)


class FixedShare(_Slots):
    """A fixed number of slots: a client's share is the same whoever comes and goes."""

    def __init__(self, slots: int, slice_ns: int = SLICE_NS) -> None:
        """slots: how many clients there may be at once. Raises: InvalidArgument for numbers that are not above 0."""
        super().__init__(slice_ns)
        if slots <= 0:
            raise InvalidArgument(f"{slots} slots: there is no time to give")
        self._owners = [None] * slots

    def join(self, client: Client, now_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Raises: InvalidArgument when every slot is taken."""
        if None not in self._owners:
            raise InvalidArgument(f"all {len(self._owners)} slots are taken: {client.name} finds none")
        self._owners[self._owners.index(None)] = client
