"""What the driver may do while a command waits for memory that is reached by message: the device lock is free then."""

import errno
import threading

import pytest
from umdev._native import ffi

CC, ENABLE = 0x14, 1 | 6 << 16 | 4 << 20
READY, SHUT_DOWN = 1, 2 << 2
PAGE = 4096
SECONDS = 60  # far more than anything takes
BY_MESSAGE = 1 << 40


class Carrier:
    """Memory whose owner never answers, unless `answer` does."""

    def __init__(self, device):
        self.device = device
        self.asked, self.cancelled = threading.Event(), threading.Event()
        self.transfers = 0
        self.answer = None
        self._functions = (
            ffi.callback("int(void *, uint64_t, void *, uint64_t, int)", self._transfer),
            ffi.callback("void(void *, int)", self._cancel),
        )
        device.address_space.map(BY_MESSAGE, PAGE)
        transfer, cancel = self._functions
        device.address_space.set_messages(transfer, ffi.NULL, cancel)

    def _transfer(self, *request):
        self.transfers += 1
        self.asked.set()
        if self.answer is not None:
            return self.answer(*request)
        return -errno.ECANCELED if self.cancelled.wait(SECONDS) else -errno.ETIMEDOUT

    def _cancel(self, _context, cancelled):
        if cancelled:
            self.cancelled.set()

    def close(self):
        self.device.address_space.set_messages(ffi.NULL)


@pytest.fixture
def carrier(stepped):
    made = Carrier(stepped.device)
    yield made
    made.close()


@pytest.mark.parametrize(("configuration", "status"), [(0, 0), (ENABLE | 1 << 14, READY | SHUT_DOWN)])
def test_a_reset_or_shutdown_ends_the_command(stepped, carrier, configuration, status):
    admin = stepped.enable().admin
    admin.submit(6, 0, BY_MESSAGE, 0, 1)  # Identify
    admin.submit(6, 0, stepped.page.address, 0, 1)  # comes behind it, and is never carried out
    step = threading.Thread(target=stepped.progress)
    step.start()
    assert carrier.asked.wait(SECONDS)
    assert stepped.status() == READY  # a read is answered meanwhile
    stepped.bar.write32(CC, configuration)
    assert stepped.status() == status
    step.join(SECONDS)
    assert admin.poll() is None
    assert stepped.page.read(0, PAGE) == bytes(PAGE)
    device = stepped.device
    assert (carrier.transfers, device.failures, device.error_count) == (1, 0, 0)
    stepped.disable()
    stepped.enable()
    assert stepped.identify(1)[24:34] == b"umdev NVMe"


def test_a_completion_may_be_seen_before_its_write_returns(stepped, carrier):
    """Its owner carries the write out, and the driver acknowledges the entry, before the device hears of it."""
    admin = stepped.enable().admin
    queue = stepped.create()
    device = stepped.device
    device.registers.completion[1].address = BY_MESSAGE
    written = []

    def transfer(_context, iova, _bytes, length, write):
        assert write
        written.append((iova - BY_MESSAGE, length))
        if len(written) == 2:  # the half with the phase bit
            queue.head = 1
            queue.seen()
        return 0

    carrier.answer = transfer
    queue.submit(0, 1)  # Flush
    stepped.progress()
    assert written == [(0, 8), (8, 8)]
    assert device.events == []
    assert device.registers.completion[1].unread == 0
    assert admin.poll() is None
