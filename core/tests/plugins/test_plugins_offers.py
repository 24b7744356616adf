"""A device type by its name alone: one parent offers it, or it is said why none is taken."""

import pytest

PARENT = """
    from umdev.device import Device, DeviceType, Parent, PciId

    class Card(Device):
        pci = PciId(vendor=1, device=2, class_code=0)

    parent = Parent("{name}", [DeviceType(id, id, Card) for id in ("{name}-1", "both")])
"""
ONLY = {"UMDEV_DISABLE_PLUGINS": "umdev*"}


@pytest.fixture
def offering(site):
    """`offering(name)`: what a program with the parents `red` and `blue` and a broken one prints."""
    for name in ("red", "blue"):
        site.install(f"{name}-cards", {"umdev.parents": {name: f"{name}:parent"}}, **{name: PARENT.format(name=name)})
    site.install("broken-cards", {"umdev.parents": {"broken": "broken:parent"}}, broken="raise OSError('no card')")

    def go(name):
        return site.run(
            f"""
            from umdev.errors import UmdevError
            from umdev.plugins import offering
            try:
                parent, type_id = offering({name!r})
                print(parent.name, type_id)
            except UmdevError as error:
                print(type(error).__name__, error)
            """,
            **ONLY,
        ).strip()

    return go


def test_one_parent_offers_it(offering):
    assert offering("red-1") == "red red-1"
    assert offering("blue/both") == "blue both"
    assert offering("blue/nothing") == "blue nothing"


def test_which_of_several(offering):
    assert offering("both") == "Conflict several parents offer 'both'; say which: blue/both, red/both"


def test_nobody_offers_it(offering):
    said = offering("green-1")
    assert said.startswith("NotFound no parent offers a type 'green-1'; there are: blue-1, both, red-1; not to be")
    assert "no card" in said
    assert offering("green/both").startswith("NotFound")
