"""The other process of a vfio-user row.

usage: python -m umdev_testkit.bench.server DESCRIPTOR vfio-user
       python -m umdev_testkit.bench.server DESCRIPTOR echo REQUEST-BYTES REPLY-BYTES

DESCRIPTOR is a connected stream socket; the process ends when its peer closes it.
"""

from __future__ import annotations

import sys


def serve(descriptor: int, kind: str, *lengths: str) -> None:
    """Serve the peer until it is gone."""
    if kind == "echo":
        from .native import lib

        request, reply = map(int, lengths)
        lib.umdev_bench_echo_serve(descriptor, request, reply)
    else:
        from umdev.plugins import plugins

        from .device import BenchDevice

        server = plugins().load_bus("vfio-user").serve(BenchDevice(), descriptor=descriptor)
        try:
            server.run()
        finally:
            server.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]), *sys.argv[2:])
