"""What the fixtures say where a device can't be attached."""

import pytest
from umdev.errors import NotSupported
from umdev_testkit import functions, plugin


def test_a_bus_that_every_host_has_must_not_be_skipped(monkeypatch):
    def refuse(_device, _attachment):
        raise NotSupported("not today")

    monkeypatch.setattr(functions, "attached", refuse)
    for attachment in ("loopback", "vfio-user", "vfio-user-messages"):
        (attach,) = plugin._functions(attachment)
        with pytest.raises(NotSupported, match="not today"):
            attach(None)
