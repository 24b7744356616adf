"""What every test of the project runs on."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _opened_once() -> None:
    """What a process opens at its first interrupt, and keeps: before any test counts descriptors."""
    from umdev.device import Block, Device, Interrupts, MemoryBar, PciId, Register
    from umdev.loopback import bus

    class Registers(Block["First"]):
        register = Register(0)

    class First(Device):
        pci = PciId(vendor=0x1234, device=1, class_code=0x00FF00)
        interrupts = Interrupts(msi=1)
        bar0 = MemoryBar(0, Registers, size=4096)

    with First() as device, bus.open_function(device) as function:
        function.enable()
        with function.enable_interrupts("msi"):
            pass
