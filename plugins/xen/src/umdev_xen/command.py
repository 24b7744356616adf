"""`umdev run --xen`: devices for a domain that the toolstack runs, through its reboots."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pwd
import signal
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click
from umdev.errors import HypervisorError, NotFound, StateError, UmdevError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from umdev.device import Device, Parent
    from umdev_cli.definitions import Named

_GLANCE = 3600.0
"""Seconds that the worker waits at a time."""


@click.command("run")
@click.argument("devices", nargs=-1, required=True, metavar="DEVICE...")
@click.option("--xen", "domain", required=True, metavar="DOMAIN", help="A domain's name, or its number.")
@click.option("--polled", is_flag=True, help="Drivers need no interrupts: serve where they can't be delivered.")
@click.option("--once", is_flag=True, help="End with the domain, whether it reboots or not.")
@click.option("--user", metavar="NAME", help="Serve as this user, who can open nothing of Xen's any more.")
@click.option("--host-bridge/--no-host-bridge", default=None, help="Be PCI host bridge 00:00.0; a PVH domain has none.")
def command(
    *, devices: tuple[str, ...], domain: str, polled: bool, once: bool, user: str | None, host_bridge: bool | None
) -> int:
    """Give devices to a domain of Xen, from before it runs until it is gone, and again when it reboots.

    DEVICE is a device type, as PARENT/TYPE where several parents offer it, with attributes as in mtty-1,port0=unix:/x,
    or the UUID of a defined device. Start it before the domain (xl create -p, or before xl create: it waits for the
    name); each life of the domain is served by a process that is restricted to it. It ends by SIGTERM and Ctrl-C, with
    exit code 0; a domain given by its number, and --once, end it with the domain.
    """
    from umdev_cli.failures import exit_code, line
    from umdev_cli.hosted import checked

    from .supervisor import Supervisor

    logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
    account = _account(user)
    named = checked(devices)  # now: the domain may come much later

    def work(domid: int) -> int:
        try:
            return _serve(domid, named, polled=polled, host_bridge=host_bridge, account=account)
        except UmdevError as error:
            if isinstance(error, HypervisorError) and error.errno == errno.ESRCH and not domain.isdecimal():
                click.echo(f"domain {domid} has gone already", err=True)  # its name is still in xenstore
                return 0
            click.echo(f"umdev: {line(error)}", err=True)
            return exit_code(error)

    return Supervisor(domain, work, once=once).run()


def _serve(
    domid: int,
    named: Sequence[tuple[Parent, Named]],
    *,
    polled: bool,
    host_bridge: bool | None,
    account: pwd.struct_passwd | None,
) -> int:
    """The worker: one domain's devices, until it has gone. In the main thread of a process of its own."""
    from .domain import Domain

    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: over.set())
    with ExitStack() as stack:
        made = []
        for parent, each in named:
            attributes = each.definition.attributes()
            made.append(parent.create(each.definition.mdev_type, each.uuid, attributes=attributes))
            stack.callback(_close, made[-1], account is not None)
        opened = stack.enter_context(Domain(domid, host_bridge=host_bridge))
        for device in made:
            slot = opened.plug(device, polled=polled)
            click.echo(f"0000:00:{slot:02x}.0 {device} of domain {domid}", err=True)
        if account is not None:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)

        def watch() -> None:
            opened.wait()
            over.set()

        threading.Thread(target=watch, name="end of the domain", daemon=True).start()
        while not over.wait(_GLANCE):  # a signal's handler runs in this thread, between waits
            continue
        if opened.reason is not None:
            click.echo(opened.reason, err=True)
    return 0


def _close(device: Device, as_other: bool) -> None:
    """As another user the claim's file can't be removed: it counts for nothing once this process has ended."""
    with contextlib.suppress(*(PermissionError, StateError) if as_other else ()):
        device.close()


def _account(user: str | None) -> pwd.struct_passwd | None:
    if user is None:
        return None
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise NotFound(f"there is no user {user!r}") from None
