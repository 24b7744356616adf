"""A client whose memory is reached by message, and that answers none: it stalls nobody but itself."""

import itertools
import threading

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


class Held:
    """Of a client's messages from now on the first one and another one wait for `answer`; the others don't."""

    def __init__(self, client, number):
        self._client, self._wanted = client, (0, number)
        self._numbers, self._kept = itertools.count(), []
        self._came = threading.Condition()
        self.later = None
        client.function._client._answer = self._hear

    def _hear(self, event):
        if self.later is not None:
            self.later.append(event)
        if next(self._numbers) in self._wanted:
            with self._came:
                self._kept.append(event)
                self._came.notify_all()
        else:
            self._client._answer(event)

    def comes(self, condition=lambda: False):
        """Until a message waits; False: the condition came true before."""
        while True:
            with self._came:
                if self._came.wait_for(lambda: self._kept, 0.01):
                    return True
            if condition():
                return False

    def answer(self):
        self._client._answer(self._kept.pop())


def test_an_engine_that_is_reset_while_it_waits_for_any_message_forgets_what_it_ran(vgpus):
    with mute_client(vgpus[0], HOUR) as client:
        attacker = Attacker(client.function)
        attacker.prepare()
        engine = vgpus[0].engines[0]
        for number in itertools.count(1):
            old, new = (attacker.context(RENDER, attacker.attack_table) for _ in range(2))
            held = Held(client, number)
            for _ in range(2):  # the second time it is what runs already
                old.emit(store(DATA, 1))
                attacker.submit(old)
                assert held.comes()
            held.answer()
            if not held.comes(lambda: not engine.queue.waiting):
                break
            attacker.reset(engines=(RENDER,))
            pointer, held.later = attacker.mmio.read32(RENDER + 0x3A0), []
            held.answer()
            attacker.wait_until(lambda: engine.queue.running is None, "the end of the old life's step")
            assert (held.later, engine._execution, engine.error) == ([], None, "")
            assert attacker.mmio.read32(RENDER + 0x3A0) == pointer
            attacker.start_engine(RENDER)
            new.emit(store(DATA + 8, number))
            attacker.submit(new)
            assert attacker.wait_idle(RENDER) == [(0x01, 0), (0x18, new.identity)]
            assert attacker.load(attacker.data_page + 8) == number
            assert engine.error == ""
        assert number > 12
        attacker.close()
