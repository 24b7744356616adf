"""State that is not a register: declared, so that reset, save and restore know it by name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from itertools import chain, repeat
from typing import Any, Generic, Self, TypeVar, overload

from ..errors import DeclarationError, SaveError

T = TypeVar("T")
PLAIN = (type(None), bool, int, float, str, bytes)


class State(Generic[T]):
    """One attribute of a `Device` or `Block`: `buffer = State(lambda: bytearray(4096))`.

    `default` makes the value that holds after power-on and, unless `keep` is true, after every reset. With
    `save=False` it is a resource of the host (a socket, a terminal): neither saved nor reset.
    What is saved must be plain data: None, bool, int, float, str, bytes, bytearray, and list, tuple, dict, set or deque
    of these. It comes back in the types that the default has at the same place, nested ones included; beyond that a
    bytearray comes back as bytes, a tuple, set or deque as a list. A value keeps the kind of its default, a number a
    number, text text and so on, or is None; where the default is None it may be anything.
    """

    def __init__(self, default: Callable[[], T], *, keep: bool = False, save: bool = True) -> None:
        if not callable(default):
            raise DeclarationError(f"State takes a function that makes the value: State(lambda: {default!r})")
        self.default = default
        self.keep = keep
        self.save = save
        self.name = "?"

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Self | T:
        if instance is None:
            return self
        values = instance.__dict__
        key = "_state_" + self.name
        if key not in values:
            values[key] = self.default()
        value: T = values[key]
        return value

    def __set__(self, instance: object, value: T) -> None:
        instance.__dict__["_state_" + self.name] = value


def declared(owner: type) -> dict[str, State[Any]]:
    """The states that a class declares, its bases' included, by attribute name."""
    found: dict[str, State[Any]] = {}
    for cls in reversed(owner.__mro__):
        for name, value in vars(cls).items():
            if isinstance(value, State):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def reset(owners: Mapping[str, object], *, everything: bool) -> None:
    """Put states back to their defaults; those with `keep` only if `everything`."""
    for owner in owners.values():
        for name, state in declared(type(owner)).items():
            if state.save and (everything or not state.keep):
                setattr(owner, name, state.default())


def save(owners: Mapping[str, object]) -> dict[str, object]:
    """The values by dotted name. Raises: SaveError for a value that is not plain data or not of its default's kind."""
    values = {}
    for name, (owner, state) in _saved(owners).items():
        values[name] = _plain(getattr(owner, state.name), name)
        _check_kind(name, values[name], state.default())  # now, while nothing is lost
    return values


def restore(owners: Mapping[str, object], values: Mapping[str, object]) -> None:
    """Set what `save` returned; nothing is set if a name is missing or unknown, or a value of another kind.

    Raises: SaveError.
    """
    known = _saved(owners)
    if wrong := known.keys() ^ values.keys():
        name = min(wrong)
        raise SaveError(
            f"state {name} is {'missing from what was saved' if name in known else 'not declared any more'}"
        )
    restored = {}
    for name, (_, state) in known.items():
        default = state.default()
        _check_kind(name, values[name], default)
        restored[name] = _like(values[name], default)
    for name, (owner, state) in known.items():
        setattr(owner, state.name, restored[name])


def _saved(owners: Mapping[str, object]) -> dict[str, tuple[object, State[Any]]]:
    """What is saved, by dotted name: who has it, and its declaration."""
    return {
        _join(path, name): (owner, state)
        for path, owner in owners.items()
        for name, state in declared(type(owner)).items()
        if state.save
    }


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _plain(value: object, path: str) -> object:
    """A deep copy in types that every serialiser knows."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{path}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        try:
            return sorted(_plain(item, path) for item in value)  # type: ignore[type-var]  # unorderable items raise here
        except TypeError as error:
            raise SaveError(f"{path} is a set whose items have no order, so it can't be saved: {error}") from error
    raise SaveError(f"{path} is a {type(value).__name__}, which can't be saved: keep plain data, or declare save=False")


def _check_kind(path: str, value: object, default: object) -> None:
    """Values of one kind are saved alike, so a model may use them alike; saved state may come from elsewhere."""
    if value is None or default is None:
        return
    for kind in _KINDS:
        if isinstance(value, kind) != isinstance(default, kind):
            raise SaveError(f"{path} is of type {type(value).__name__}, its default {type(default).__name__}")


def _like(saved: Any, default: Any) -> Any:
    """`saved` in the container types of `default`, as far as that goes."""
    kind: Any = type(default)
    if kind not in _MADE_OF or not isinstance(saved, _MADE_OF[kind]):
        return saved
    if kind is dict:
        return {key: _like(value, default.get(key)) for key, value in saved.items()}
    if kind in (list, tuple, deque):
        models = chain(default, repeat(None))
        saved = [_like(item, next(models)) for item in saved]
    return deque(saved, default.maxlen) if kind is deque else kind(saved)


_KINDS: tuple[Any, ...] = (
    (int, float),
    str,
    (bytes, bytearray, memoryview),
    (list, tuple, deque, set, frozenset),
    Mapping,
)
_MADE_OF: Mapping[type, Any] = {
    dict: dict,
    bytearray: bytes,
    list: list,
    tuple: list,
    deque: list,
    set: list,
    frozenset: list,
}
"""What each container is saved as."""
