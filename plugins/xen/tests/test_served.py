"""Devices of one process that share a domain's ioreq server; the domain is the test's."""

import pytest
from umdev.errors import StateError
from umdev_xen import served
from umdev_xen.served import Served


class Domain:
    """What `Served` needs of one."""

    made: list

    def __init__(self, domid, **_options):
        self.domid = domid
        self.host_bridge = False
        self.reason = None
        self.ended = self.closed = False
        self.stuck = False
        self.slots = set()
        Domain.made.append(self)

    def plug(self, _device, **_options):
        self.slots.add(len(self.slots) + 1)
        return len(self.slots)

    def unplug(self, slot):
        self.slots.remove(slot)

    def close(self):
        self.reason = "closed"
        if self.stuck:
            raise StateError("a handler has not returned")
        self.ended = self.closed = True


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(served, "Domain", Domain)
    Domain.made = []
    return lambda: Served(None, 7, slot=None, polled=False, host_bridge=None, restrict=True)


def test_devices_share_a_domain_until_the_last_goes(serve):
    first, second = serve(), serve()
    assert first.domain is second.domain
    first.close()
    assert not first.domain.closed
    second.close()
    second.close()
    assert second.domain.closed
    third = serve()
    assert third.domain is not first.domain
    third.close()


def test_one_that_ended_is_closed_beside_its_successor(serve):
    """Xen gives numbers again, and an event channel may fail while the domain lives."""
    first = serve()
    first.domain.reason, first.domain.ended = "it has gone", True
    second = serve()
    assert second.domain is not first.domain
    first.close()
    assert first.domain.closed
    assert not second.domain.closed
    third = serve()
    assert third.domain is second.domain
    third.close()
    second.close()
    assert second.domain.closed


def test_one_that_refuses_to_close_is_closed_again_beside_its_successor(serve):
    first = serve()
    first.domain.stuck = True
    with pytest.raises(StateError, match="has not returned"):
        first.close()
    second = serve()
    assert second.domain is not first.domain, "nobody serves what is about to end"
    first.domain.stuck = False
    first.close()
    first.close()
    assert first.domain.closed
    assert not second.domain.closed
    second.close()
    assert not served._open
