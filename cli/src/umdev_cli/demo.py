"""`umdev demo`: see the seven services work on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from umdev.errors import NotSupported

from . import complete, options, output

if TYPE_CHECKING:
    from .demo_proofs import Proof

FAILED = 1


@click.command
@click.option("--guest", type=click.Choice(["linux"]), help="Boot a real guest whose own driver drives a device.")
@click.option("--bus", shell_complete=complete.buses, help="Attach by this bus instead of the best one of this host.")
@options.dumpjson
def command(*, guest: str | None, bus: str | None, dumpjson: bool) -> int:
    """Drive each of the seven services from the driver's side, and prove it from the other one.

    Each proof is a random number of this run. Without --guest nothing is fetched and no privilege is needed.
    """
    if guest is not None:
        return _guest(dumpjson=dumpjson)
    from .demo_proofs import demonstrate

    with output.waiting("the services are being driven"):
        proofs = list(demonstrate(bus))
    if dumpjson:
        output.dump_json([proof.as_dict() for proof in proofs])
    else:
        _show(proofs)
    return 0 if all(proof.ok for proof in proofs) else FAILED


def _show(proofs: list[Proof]) -> None:
    click.echo(f"Seven services on the {proofs[0].bus} bus. Each random number is of this run and was read back")
    click.echo("from the other side: what the driver did by the device, what the device did by the driver.")
    click.echo()
    output.table(
        ("service", "", "mechanism", "proof"),
        [(proof.service, "ok" if proof.ok else "FAILED", proof.mechanism, proof.proof) for proof in proofs],
    )


def _guest(*, dumpjson: bool) -> int:
    from umdev.plugins import Group, installed

    needed = "--guest boots a guest with the test kit, for the serial card: pip install umdev-testkit umdev-mtty"
    try:
        from umdev_testkit import guest as _available  # noqa: F401  # is the test kit installed?
    except ImportError as error:
        raise NotSupported(needed) from error
    if "mtty" not in {info.name for info in installed(Group.PARENTS)}:
        raise NotSupported(needed)
    from .demo_guest import boot

    seen = boot(None if dumpjson else click.echo)
    if dumpjson:
        output.dump_json(seen)
    return 0 if seen["ok"] else FAILED
