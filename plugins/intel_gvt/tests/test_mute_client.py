"""A client whose memory is reached by message, and that answers none: it stalls nobody but itself."""

import pytest
from umdev_testkit.mute import mute_client

from .conftest import BLITTER, DATA, RENDER, Attacker, Driver, store, user_interrupt

HOUR = 3600.0


@pytest.fixture
def vgpus(gpu):
    devices = [gpu.create("i915-GVTg_V5_8") for _ in range(2)]
    yield devices
    for device in devices:
        device.close()


@pytest.fixture
def honest(vgpus, loopback_function):
    driver = Driver(loopback_function(vgpus[1]))
    yield driver
    driver.close()


def test_the_other_vgpu_works_while_nobody_answers(vgpus, honest):
    with mute_client(vgpus[0], HOUR) as client:
        attacker = Attacker(client.function)
        attacker.prepare()
        client.hush()
        attacker.go(RENDER, store(DATA, 5))
        assert client.asked.wait(60)
        for _ in range(20):
            honest.run(BLITTER, user_interrupt())
        assert client.messages == 1, "all of it while the first message is unanswered"
        assert vgpus[0].engines[0].busy
        # Its own reset ends the wait, and makes good.
        attacker.interrupts.close()
        client.function.reset()
        client.speak()
        client.function.enable()
        again = Attacker(client.function)
        again.prepare()
        again.run(RENDER, store(DATA, 6), again.attack_table)
        assert again.load(again.data_page) == 6
        honest.run(BLITTER, user_interrupt())
        again.close()


def test_what_is_not_answered_in_time_is_an_error_of_its_own_engine(vgpus, honest):
    with mute_client(vgpus[0], 0.05) as client:
        attacker = Attacker(client.function)
        attacker.prepare()
        client.hush()
        attacker.go(RENDER, store(DATA, 5))
        honest.run(BLITTER, user_interrupt())
        attacker.wait_until(lambda: vgpus[0].engines[0].error, "the engine's error")
        honest.run(BLITTER, user_interrupt())
        assert vgpus[1].engines[0].error == ""
        client.speak()
        attacker.close()
