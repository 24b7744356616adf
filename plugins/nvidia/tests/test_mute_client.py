"""A client whose memory is reached by message, and that answers none: it stalls nobody but itself."""

import pytest
from umdev_testkit.mute import mute_client

from .conftest import FAULT, FIFO_INTR, Driver, release

HOUR, FENCE = 3600.0, 0x6000_0000


@pytest.fixture
def vgpus(gpu):
    devices = [gpu.create("nvidia-36") for _ in range(2)]
    yield devices
    for device in devices:
        device.close()


class Fenced:
    """A driver with a channel and a page for its fences."""

    def __init__(self, function):
        self.driver = Driver(function).start()
        self.channel = self.driver.channel(0)
        self.page = self.driver.page()
        self.channel.tables.map(FENCE, self.page, system=True)
        self.driver.invalidate(self.channel.tables)

    def submit(self, number):
        self.channel.go(*release(FENCE, number))

    def run(self, number):
        self.submit(number)
        self.driver.wait_until(lambda: self.driver.word(self.page) == number, "the fence")


@pytest.fixture
def honest(vgpus, loopback_function):
    fenced = Fenced(loopback_function(vgpus[1]))
    yield fenced
    fenced.driver.close()


def test_the_other_vgpu_works_while_nobody_answers(vgpus, honest):
    with mute_client(vgpus[0], HOUR) as client:
        attacker = Fenced(client.function)
        attacker.run(1)
        client.hush()
        attacker.submit(2)
        assert client.asked.wait(60)
        for number in range(1, 21):
            honest.run(number)
        assert client.messages == 1, "all of it while the first message is unanswered"
        # Its own reset ends the wait, and makes good.
        attacker.driver.interrupts.close()
        client.function.reset()
        client.speak()
        client.function.enable()
        again = Fenced(client.function)
        again.run(3)
        honest.run(30)
        again.driver.close()


def test_what_is_not_answered_in_time_is_an_error_of_its_own_channel(vgpus, honest):
    with mute_client(vgpus[0], 0.05) as client:
        attacker = Fenced(client.function)
        client.hush()
        attacker.submit(1)
        honest.run(1)
        attacker.driver.wait_until(lambda: attacker.driver.mmio.read32(FIFO_INTR) & FAULT, "the channel's error")
        honest.run(2)
        assert not honest.driver.mmio.read32(FIFO_INTR) & FAULT
        client.speak()
        attacker.driver.close()
