"""Policies of time slices: best effort, equal share and fixed share, as vGPU hosts offer them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umdev.device import InvalidArgument

from .policy import Policy, Turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .client import Client

SLICE_NS = 2_000_000
FORGIVEN_NS = 1_000_000_000
"""How far a host may be late before it is no more made up for."""


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
    """Time is cut into slots that come round; a client runs in its own only, and one that is not used stays empty.

    A slot passes as its owner uses the engine, an empty one by the clock. So a host that is late takes nothing from
    anybody: what a step takes beyond its slot is paid for out of the client's next ones, and what the engine slept too
    long while somebody waited shortens the next empty slots.
    """

    def __init__(self, slice_ns: int) -> None:
        self.slice_ns = _slice(slice_ns)
        self._owners: list[Client | None] = []
        self._at = 0  # the present slot
        self._left = slice_ns  # of it, above 0
        self._owed: dict[Client, int] = {}
        self._late = 0  # time that has passed and that no empty slot has had yet
        self._empty_since: int | None = None
        self._awaited = False  # somebody had work while the engine stood empty

    def leave(self, client: Client, now_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Its slot stays empty from now on."""
        self._owed.pop(client, None)
        if client in self._owners:
            self._owners[self._owners.index(client)] = None

    def charge(self, client: Client, start_ns: int, used_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Its slot passes."""
        if client not in self._owners:
            return
        if client is not self._owners[self._at]:
            self._owe(client, used_ns)
        elif used_ns < self._left:
            self._left -= used_ns
        else:
            self._owe(client, used_ns - self._left)
            self._next()

    def choose(self, ready: Sequence[Client], now_ns: int) -> Turn:
        """The owner of the present slot, to its end."""
        if not self._owners:
            self._empty_since = None
            return Turn(None)
        self._look_at_clock(now_ns)
        while (owner := self._owners[self._at]) is None or owner not in ready:
            if self._late < self._left:
                self._left -= self._late
                self.empty_ns += self._late
                self._late = 0
                self._empty_since, self._awaited = now_ns, bool(ready)
                return Turn(None, self._left)
            self._late -= self._left
            self.empty_ns += self._left
            self._next()
        return Turn(owner, self._left)

    def _look_at_clock(self, now_ns: int) -> None:
        """How long nobody has run."""
        if self._empty_since is None:
            return
        passed = now_ns - self._empty_since
        self._empty_since = None
        if not self._awaited:  # rounds that nobody wanted pay what is owed, and leave no other trace
            rounds = passed // (self.slice_ns * len(self._owners)) * self.slice_ns * len(self._owners)
            paid = rounds // len(self._owners)
            self._owed = {client: owed - paid for client, owed in self._owed.items() if owed > paid}
            self.empty_ns += rounds
            passed -= rounds
        self._late = min(self._late + passed, FORGIVEN_NS)

    def _owe(self, client: Client, ns: int) -> None:
        self._owed[client] = min(self._owed.get(client, 0) + ns, FORGIVEN_NS)

    def _next(self) -> None:
        """The next slot of which something is left; bounded, since what is owed is."""
        self._left = 0
        while not self._left:
            self._at = (self._at + 1) % len(self._owners)
            owner = self._owners[self._at]
            paid = min(self._owed.get(owner, 0), self.slice_ns) if owner else 0
            if owner and paid:
                self._owed[owner] -= paid
            self._left = self.slice_ns - paid


class EqualShare(_Slots):
    """As many slots as clients: each has the same share, whether the others use theirs or not."""

    def __init__(self, slice_ns: int = SLICE_NS) -> None:
        """Raises: InvalidArgument for a slice that is not above 0."""
        super().__init__(slice_ns)

    def join(self, client: Client, now_ns: int) -> None:  # noqa: ARG002  # Policy's interface
        """Shares shrink."""
        self._owners.append(client)

    def leave(self, client: Client, now_ns: int) -> None:
        """Shares grow."""
        if client not in self._owners:
            return
        gone = self._owners.index(client)
        super().leave(client, now_ns)
        del self._owners[gone]
        if gone < self._at:
            self._at -= 1
        elif gone == self._at:
            self._at, self._left = self._at % max(1, len(self._owners)), self.slice_ns


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
