"""The rows and their targets (DESIGN section 6)."""

from __future__ import annotations

from umdev.errors import NotFound

from . import intel, kvm, memory, messages, nvidia, protect, softgpu, xen
from .measure import Row

__all__ = ["ROWS", "select"]

ROWS = (
    Row("vfio-user/read4/c", 1.10, messages.read_c),
    Row("vfio-user/read4/python", 1.35, messages.read_python),
    Row("vfio-user/write4-posted/c", 0.18, messages.write_posted),
    Row("memory/read4k/c", 1.15, memory.read_c),
    Row("memory/read4k/python", 6.0, memory.read_python),
    Row("memory/lookup1/c", 1.3, memory.lookup_one),
    Row("memory/lookup1000/c", 1.3, memory.lookup_thousand),
    Row("kvm/mmio/c", 1.03, kvm.mmio_c, reached=1.2),
    Row("kvm/mmio/python", 1.15, kvm.mmio_python, reached=1.3),
    Row("protect/trap/c", 1.2, protect.trap_c),
    Row("protect/trap/python", 1.5, protect.trap_python),
    Row("protect/arm", 1.2, protect.arm),
    Row("protect/track-scan", 1.2, protect.track_scan),
    Row("softgpu/fill", 2.0, softgpu.fill),
    Row("softgpu/copy", 2.0, softgpu.copy),
    Row("intel-gvt/scan", 6.0, intel.scan),
    Row("intel-gvt/ggtt", 1.0, intel.ggtt),
    Row("intel-gvt/submit", 50.0, intel.submit),
    Row("nvidia/ce-copy", 2.0, nvidia.ce_copy),
    Row("nvidia/kick", 25.0, nvidia.kick),
    Row("xen/ioreq/c", 1.1, xen.ioreq_c, note="boots Xen in QEMU, which takes half a minute"),
)


def select(prefix: str = "") -> list[Row]:
    """The rows whose names start so. Raises: NotFound with the names there are."""
    rows = [row for row in ROWS if row.name.startswith(prefix)]
    if not rows:
        raise NotFound(f"no row starts with {prefix!r}; there are: {', '.join(row.name for row in ROWS)}")
    return rows
