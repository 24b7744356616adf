"""What repeats in the log of a host process."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from umdev_cli import client
from umdev_cli.logs import Sparing

if TYPE_CHECKING:
    from .conftest import Umdev

UUID = "5f3c8a30-7a0f-4a52-9f2e-0b7f3f9fb0ac"


def record(text: str, *arguments: object, error: Exception | None = None) -> logging.LogRecord:
    info = (type(error), error, None) if error else None
    return logging.LogRecord("toy", logging.ERROR, "toy.py", 1, text, arguments, info)


def test_each_kind_is_counted_by_itself() -> None:
    sparing = Sparing()
    told = [number for number in range(1, 1025) if sparing.filter(record("%d is too hot", number))]
    assert told == [*range(1, 101), 128, 256, 512, 1024]
    assert sparing.filter(record("%d is too cold", 1))
    assert sparing.filter(record("%d is too hot", 1, error=ValueError()))


def test_texts_that_are_new_each_time_are_one_kind_at_last() -> None:
    sparing = Sparing()
    told = sum(sparing.filter(record(f"{number} is too hot")) for number in range(1 << 14))
    assert told == Sparing.KINDS + Sparing.WHOLE + 7  # the 128th to the 8192nd


def test_what_logs_while_a_record_is_counted_waits_for_nobody() -> None:
    sparing = Sparing()
    told: list[bool] = []

    class Loud(str):
        __slots__ = ()

        def __hash__(self) -> int:
            told.append(sparing.filter(record("%d is too hot", 1)))
            return super().__hash__()

    loud = record("%d is too cold", 1)
    loud.name = Loud("toy")
    thread = threading.Thread(target=lambda: told.append(sparing.filter(loud)), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert len(told) > 1
    assert all(told)


def test_a_model_that_fails_without_end_fills_no_disk(toys: Umdev, monkeypatch: pytest.MonkeyPatch) -> None:
    described = toys.json("start", "toy", "-u", UUID, "--bus", "tap", "--json")
    monkeypatch.setenv("UMDEV_RUNTIME_DIR", str(toys.runtime))
    client.query(UUID, "grumble", count=3000)
    found = re.findall(r" toy ERROR (.*)", Path(described["log"]).read_text())
    assert found[:2] == ["too hot: 0", "too hot: 1"]
    assert found[100:] == [
        f"(number {number}; in between is not told) too hot: {number - 1}" for number in (128, 256, 512, 1024, 2048)
    ]
