"""DMA by message to a client that holds its own lock, as QEMU does: it answers when its own request is answered."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from umdev.device import DmaError, ResetKind

if TYPE_CHECKING:
    from .conftest import MessageClient, Sample

MEMORY = 0x10_0000
"""Where the page of a MessageClient is."""
WAIT = 60.0
RESET, PCI_EXPRESS = 13, 0x10
SCRATCH, COUNT, ADDRESS, BELL, LATER = 0x04, 0x08, 0x10, 0x1C, 0x20
INTX, MASK, UNMASK = 0, 0x09, 0x11  # DATA_NONE with ACTION_MASK, ACTION_UNMASK

Ends = list[tuple[int, str, str]]


@pytest.fixture
def client(connect_by_message: Callable[[], MessageClient]) -> Iterator[MessageClient]:
    connected = connect_by_message()
    yield connected
    connected.close()


@pytest.fixture
def ends(device: Sample, monkeypatch: pytest.MonkeyPatch) -> Ends:
    """How deferred work ended, which asks twice whatever it is told: what it wrote, and its errors' names."""
    told = []

    def outcome(device: Sample) -> str:
        try:
            device.memory.write(MEMORY, bytes(4))
        except DmaError as error:
            return type(error).__name__
        return "done"

    monkeypatch.setattr(
        type(device), "store", lambda device, value: told.append((value, outcome(device), outcome(device)))
    )
    return told


def test_every_request_is_answered_while_work_waits(client: MessageClient, device: Sample) -> None:
    first = client.start_dma(0xCAFE)
    # In Python, under the lock that the work holds otherwise; then whatever waits for an answer.
    client.post(SCRATCH, 1)
    assert client.read32(0, COUNT) == 1
    client.write32(0, SCRATCH, 2)
    assert client.read(7, 0, 4) == b"\x34\x12\x3b\x5a"
    client.write(7, 0x3C, b"\x0b")
    client.write(5, 0, bytes(4))
    assert client.irqs(MASK, INTX) == 0
    assert client.irqs(UNMASK, INTX) == 0
    assert client.map(MEMORY + 4096, 4096) == 0
    assert client.unmap(MEMORY + 4096, 4096) == 0
    assert client.read32(0, COUNT) == 2
    assert client.finish_dma(first) == struct.pack("<I", 0xCAFE)
    client.post(SCRATCH, 3)
    assert client.read32(0, COUNT) == 3
    assert device.errors == []


def test_order_is_kept_while_work_waits(client: MessageClient, device: Sample) -> None:
    first = client.start_dma(1)
    for value in range(1000):
        client.post(SCRATCH, value)
        if value % 100 == 0:
            assert client.read32(0, SCRATCH) == value
    assert client.read32(0, COUNT) == 1000
    client.finish_dma(first)
    assert device.errors == []


@pytest.mark.parametrize("how", ["message", "configuration"])
def test_a_reset_ends_what_waits(client: MessageClient, device: Sample, ends: Ends, how: str) -> None:
    late = client.start_dma(1)
    client.post(LATER, 2)  # waits behind it, and never runs
    if how == "message":
        assert client.call(RESET)[0] == 0
    else:
        at = client.read(7, 0x34, 1)[0]
        while client.read(7, at, 1)[0] != PCI_EXPRESS:
            at = client.read(7, at + 1, 1)[0]
        client.write(7, at + 8, b"\x00\x80")  # Initiate Function Level Reset
    # The reset has waited for the work's end, so nothing of the old life comes after it.
    assert ends == [(1, "DmaAborted", "DmaAborted")]
    assert device.resets[-1] == "FLR"
    assert device.work.pending == []
    client.enable()
    client.answer(late)  # nobody waits for it
    first = client.start_dma(3)
    client.finish_dma(first)
    client.answer(client.request())
    while len(ends) < 2:
        client.read32(0, COUNT)
    assert ends[1:] == [(3, "done", "done")]
    assert device.native.counters["faulted"] == 0


def test_a_reset_ends_what_a_thread_without_the_lock_waits_for(client: MessageClient, device: Sample) -> None:
    """As an engine's thread does."""
    ended = []

    def own() -> None:
        try:
            device.memory.read(MEMORY, 4096)
        except DmaError as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=own)
    thread.start()
    client.request()
    assert client.call(RESET)[0] == 0
    thread.join(WAIT)
    assert ended == ["DmaAborted"]
    client.enable()
    client.finish_dma(client.start_dma(3))


def test_work_that_a_reset_ends_is_no_fault(
    client: MessageClient, device: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(device), "store", lambda device, _: device.memory.write(MEMORY, bytes(4)))
    client.start_dma(1)
    assert client.call(RESET)[0] == 0
    assert device.native.counters["faulted"] == 0


def test_the_loss_of_the_client_ends_what_waits(
    connect_by_message: Callable[[], MessageClient], client: MessageClient, ends: Ends
) -> None:
    client.start_dma(1)
    client.close()
    connect_by_message().close()  # which the server takes when it has done with the first
    assert [end[:2] for end in ends] == [(1, "DmaError")]
    assert ends[0][2] in ("DmaError", "DmaAborted")  # as the server has come


def test_state_is_saved_between_items_of_work(client: MessageClient, device: Sample, ends: Ends) -> None:
    first = client.start_dma(1)
    saved = []
    saver = threading.Thread(target=lambda: saved.append((device.save(), list(ends))))
    saver.start()
    client.finish_dma(first)
    client.answer(client.request())
    saver.join(WAIT)
    assert saved[0][1] == [(1, "done", "done")]


def test_a_reset_in_work_ends_nothing_else(client: MessageClient, device: Sample, ends: Ends) -> None:
    """A thread of the model's own waits in DMA; deferred work resets the device."""

    def own() -> None:
        with device.locked():
            device.store(7)

    thread = threading.Thread(target=own)
    thread.start()
    client.request()
    device.after(0, lambda: device.reset(ResetKind.FLR))
    thread.join(WAIT)
    assert ends == [(7, "DmaAborted", "DmaAborted")]


def test_an_unmap_while_work_waits_ends_the_transfer(client: MessageClient, device: Sample) -> None:
    """What is under way is the client's to carry out or not; nothing is asked for afterwards."""
    first = client.start_dma(1)
    assert client.unmap(MEMORY, 4096) == 0
    client.finish_dma(first)
    client.post(LATER, 2)
    while not device.errors:
        client.read32(0, COUNT)
    assert device.errors == ["NotMapped"]


@pytest.mark.parametrize("where", ["handler", "unmap"])
def test_the_thread_that_serves_the_client_never_waits(
    client: MessageClient, device: Sample, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "handler":
        client.write(0, ADDRESS, MEMORY.to_bytes(8, "little"))
        client.post(BELL, 1)
        client.read32(0, COUNT)
    else:
        monkeypatch.setattr(type(device), "on_unmap", store_in_memory)
        assert client.map(MEMORY + 4096, 4096) == 0
        assert client.unmap(MEMORY + 4096, 4096) == 0
        monkeypatch.undo()
    assert device.errors == ["DmaWouldDeadlock"]


def store_in_memory(device: Sample, _gone: object) -> None:
    try:
        device.memory.write(MEMORY, bytes(4))
    except DmaError as error:
        device.errors.append(type(error).__name__)
