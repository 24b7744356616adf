"""Xen's stable libraries, loaded when they are used: cffi's ABI mode, so neither headers nor a compiler are needed.

Prototypes are those of xendevicemodel.h, xenforeignmemory.h, xenevtchn.h, xencall.h, xentoolcore.h and xenstore.h;
which version of a library brought a function is in its symbol versions (tools/libs/*/lib*.map of Xen's source).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cffi import FFI
from umdev.errors import HypervisorError, NotSupported

__all__ = [
    "CALL",
    "DEVICE_MODEL",
    "EVENT_CHANNEL",
    "FOREIGN_MEMORY",
    "LIBRARIES",
    "STORE",
    "TOOLCORE",
    "Library",
    "ffi",
]

ffi: Any = FFI()
ffi.cdef("""
    typedef struct xendevicemodel_handle xendevicemodel_handle;
    xendevicemodel_handle *xendevicemodel_open(void *logger, unsigned int flags);
    int xendevicemodel_close(xendevicemodel_handle *dmod);
    int xendevicemodel_create_ioreq_server(xendevicemodel_handle *dmod, uint16_t domid, int bufioreq, uint16_t *id);
    int xendevicemodel_get_ioreq_server_info(xendevicemodel_handle *dmod, uint16_t domid, uint16_t id,
                                             unsigned long *ioreq, unsigned long *bufioreq, uint32_t *port);
    int xendevicemodel_map_io_range_to_ioreq_server(xendevicemodel_handle *dmod, uint16_t domid, uint16_t id,
                                                    int is_mmio, uint64_t start, uint64_t end);
    int xendevicemodel_unmap_io_range_from_ioreq_server(xendevicemodel_handle *dmod, uint16_t domid, uint16_t id,
                                                        int is_mmio, uint64_t start, uint64_t end);
    int xendevicemodel_map_mem_type_to_ioreq_server(xendevicemodel_handle *dmod, uint16_t domid, uint16_t id,
                                                    uint16_t type, uint32_t flags);
    int xendevicemodel_map_pcidev_to_ioreq_server(xendevicemodel_handle *dmod, uint16_t domid, uint16_t id,
                                                  uint16_t segment, uint8_t bus, uint8_t device, uint8_t function);
    int xendevicemodel_unmap_pcidev_from_ioreq_server(xendevicemodel_handle *dmod, uint16_t domid, uint16_t id,
                                                      uint16_t segment, uint8_t bus, uint8_t device,
                                                      uint8_t function);
    int xendevicemodel_destroy_ioreq_server(xendevicemodel_handle *dmod, uint16_t domid, uint16_t id);
    int xendevicemodel_set_ioreq_server_state(xendevicemodel_handle *dmod, uint16_t domid, uint16_t id, int enabled);
    int xendevicemodel_set_pci_intx_level(xendevicemodel_handle *dmod, uint16_t domid, uint16_t segment, uint8_t bus,
                                          uint8_t device, uint8_t intx, unsigned int level);
    int xendevicemodel_inject_msi(xendevicemodel_handle *dmod, uint16_t domid, uint64_t address, uint32_t data);
    int xendevicemodel_track_dirty_vram(xendevicemodel_handle *dmod, uint16_t domid, uint64_t first, uint32_t count,
                                        unsigned long *bitmap);
    int xendevicemodel_set_mem_type(xendevicemodel_handle *dmod, uint16_t domid, int type, uint64_t first,
                                    uint32_t count);
    int xendevicemodel_relocate_memory(xendevicemodel_handle *dmod, uint16_t domid, uint32_t size, uint64_t source,
                                       uint64_t destination);
    int xendevicemodel_nr_vcpus(xendevicemodel_handle *dmod, uint16_t domid, unsigned int *vcpus);

    typedef struct xenforeignmemory_handle xenforeignmemory_handle;
    typedef struct xenforeignmemory_resource_handle xenforeignmemory_resource_handle;
    xenforeignmemory_handle *xenforeignmemory_open(void *logger, unsigned int flags);
    int xenforeignmemory_close(xenforeignmemory_handle *fmem);
    void *xenforeignmemory_map(xenforeignmemory_handle *fmem, uint32_t dom, int prot, size_t pages,
                               const unsigned long *frames, int *errors);
    void *xenforeignmemory_map2(xenforeignmemory_handle *fmem, uint32_t dom, void *address, int prot, int flags,
                                size_t pages, const unsigned long *frames, int *errors);
    int xenforeignmemory_unmap(xenforeignmemory_handle *fmem, void *address, size_t pages);
    xenforeignmemory_resource_handle *xenforeignmemory_map_resource(
        xenforeignmemory_handle *fmem, uint16_t domid, unsigned int type, unsigned int id, unsigned long frame,
        unsigned long frames, void **address, int prot, int flags);
    int xenforeignmemory_unmap_resource(xenforeignmemory_handle *fmem, xenforeignmemory_resource_handle *resource);

    typedef struct xenevtchn_handle xenevtchn_handle;
    xenevtchn_handle *xenevtchn_open(void *logger, unsigned int flags);
    int xenevtchn_close(xenevtchn_handle *xce);
    int xenevtchn_fd(xenevtchn_handle *xce);
    int xenevtchn_notify(xenevtchn_handle *xce, uint32_t port);
    int xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, uint32_t port);
    int xenevtchn_unbind(xenevtchn_handle *xce, uint32_t port);
    int xenevtchn_pending(xenevtchn_handle *xce);
    int xenevtchn_unmask(xenevtchn_handle *xce, uint32_t port);

    typedef struct xencall_handle xencall_handle;
    xencall_handle *xencall_open(void *logger, unsigned int flags);
    int xencall_close(xencall_handle *xcall);
    int xencall2(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2);
    void *xencall_alloc_buffer(xencall_handle *xcall, size_t size);
    void xencall_free_buffer(xencall_handle *xcall, void *p);

    int xentoolcore_restrict_all(uint16_t domid);

    struct xs_handle *xs_open(unsigned long flags);
    void xs_close(struct xs_handle *xsh);
    void *xs_read(struct xs_handle *h, uint32_t t, const char *path, unsigned int *len);
    char **xs_directory(struct xs_handle *h, uint32_t t, const char *path, unsigned int *num);
    bool xs_watch(struct xs_handle *h, const char *path, const char *token);
    int xs_fileno(struct xs_handle *h);
    char **xs_read_watch(struct xs_handle *h, unsigned int *num);
    void free(void *p);
""")


@cache
def _open(soname: str) -> Any:
    return ffi.dlopen(soname)


@dataclass(frozen=True)
class Library:
    """One shared library: `call` is its functions by name. Loaded at the first use, once for the process."""

    soname: str
    package: str
    """Debian's."""
    since: dict[str, str] = field(default_factory=dict, hash=False)
    """Function -> the library's version that brought it, where that is not 1.0."""

    def function(self, name: str) -> Any:
        """The function itself. Raises: NotSupported (library absent, or too old)."""
        try:
            return getattr(self._loaded(), name)
        except AttributeError:
            version = self.since.get(name, "1.0")
            raise NotSupported(
                f"{self.soname} on this system has no {name}: it came with version {version} of the library; "
                f"install {self.package} of a newer Xen"
            ) from None

    def check(self) -> None:
        """Raises: NotSupported for an absent library, or one without something that is needed."""
        self._loaded()
        for name in self.since:
            self.function(name)

    def address(self, name: str) -> int:
        """Where the function is, for C. Raises: as `function`."""
        self.function(name)
        return int(ffi.cast("uintptr_t", ffi.addressof(self._loaded(), name)))

    def call(self, name: str, *arguments: Any) -> int:
        """Call it; the result where that is no failure (-1 and errno). Raises: HypervisorError, NotSupported."""
        function = self.function(name)
        ffi.errno = 0
        result = int(function(*arguments))
        if result < 0:
            raise failure(name, ffi.errno)
        return result

    def open(self, name: str, *arguments: Any) -> Any:
        """Call a function that returns a pointer. Raises: HypervisorError for NULL, NotSupported."""
        function = self.function(name)
        ffi.errno = 0
        pointer = function(*arguments)
        if pointer == ffi.NULL:
            raise failure(name, ffi.errno)
        return pointer

    def _loaded(self) -> Any:
        try:
            return _open(self.soname)
        except OSError as error:
            why = str(error).partition(".  ")[0]  # cffi goes on with where else it has looked
            raise NotSupported(f"{why}: apt install {self.package}, or what your system calls it") from error


def failure(call: str, code: int) -> HypervisorError:
    """The error for errno `code` of a library's function."""
    cause = _CAUSES.get((call, code)) or _COMMON.get(code)
    error = HypervisorError(f"{call}: {os.strerror(code)}{f' ({cause})' if cause else ''}")
    error.errno = code
    error.call = call
    return error


_COMMON = {
    errno.ESRCH: "there is no such domain, or it is being destroyed",
    errno.EACCES: "this process was restricted to another domain: one process serves one domain",
}
_NO_XEN = "is this a dom0 of Xen? The modules xen-privcmd and xen-evtchn must be loaded, and the user be root"
_CAUSES = {
    **{
        (call, code): _NO_XEN
        for call in ("xendevicemodel_open", "xenforeignmemory_open", "xenevtchn_open", "xencall_open")
        for code in (errno.ENOENT, errno.ENODEV, errno.EACCES, errno.EPERM, errno.ENXIO)
    },
    (
        "xendevicemodel_map_mem_type_to_ioreq_server",
        errno.EBUSY,
    ): "another device model has it, or a migration logs all memory",
    ("xendevicemodel_map_io_range_to_ioreq_server", errno.ENOSPC): "an ioreq server has at most 256 ranges",
    ("xendevicemodel_create_ioreq_server", errno.ENOSPC): "a domain has at most 8 ioreq servers",
    ("xendevicemodel_create_ioreq_server", errno.EINVAL): "a PV domain has no device models: HVM or PVH is needed",
    ("XENMEM_populate_physmap", errno.ENOMEM): "the domain may have no more memory: raise its maximum by xl mem-max",
    ("xendevicemodel_nr_vcpus", errno.EINVAL): "a PV domain has no device models: HVM or PVH is needed",
}

DEVICE_MODEL = Library(
    "libxendevicemodel.so.1",
    "libxendevicemodel1",
    {"xendevicemodel_relocate_memory": "1.2 (Xen 4.11)", "xendevicemodel_nr_vcpus": "1.4 (Xen 4.15)"},
)
FOREIGN_MEMORY = Library(
    "libxenforeignmemory.so.1",
    "libxenforeignmemory1",
    {
        "xenforeignmemory_map2": "1.2 (Xen 4.10)",
        "xenforeignmemory_map_resource": "1.3 (Xen 4.11)",
        "xenforeignmemory_unmap_resource": "1.3 (Xen 4.11)",
    },
)
EVENT_CHANNEL = Library("libxenevtchn.so.1", "libxenevtchn1")
CALL = Library("libxencall.so.1", "libxencall1")
TOOLCORE = Library("libxentoolcore.so.1", "libxentoolcore1")
STORE = Library("libxenstore.so.4", "libxenstore4")
LIBRARIES = (DEVICE_MODEL, FOREIGN_MEMORY, EVENT_CHANNEL, TOOLCORE, CALL, STORE)
