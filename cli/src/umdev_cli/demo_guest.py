"""`umdev demo --guest linux`: Debian's kernel in stock QEMU binds its serial driver to a card served from here."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import threading
import tty
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umdev.plugins import plugins
from umdev_testkit.guest import Guest, GuestConfig

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 180.0
NONCE_BYTES = 16

# Raw, without echo, and with hardware flow control: the card delivers only what the driver asks for.
SCRIPT = """
stty -F /dev/ttyS1 raw -echo crtscts
exec 3<>/dev/ttyS1
echo {nonce} >&3
read -t 20 answer <&3
echo "answer $answer"
grep -i ttyS1 /proc/interrupts
"""


def boot(tell: Callable[[str], object] | None) -> dict[str, Any]:
    """Boot the guest and let a random number pass through the card both ways; `tell` is given a line at a time.

    Returns what was seen: `driver` (the kernel's own line), `interrupts` (of /proc/interrupts), `sent`, `received`,
    `answered` and `ok`.

    Raises: FetchError and the like when QEMU or the kernel can't be had; GuestError when the guest fails.
    """
    say = tell or (lambda _: None)
    sent, answer = secrets.token_hex(NONCE_BYTES), secrets.token_hex(NONCE_BYTES)
    with tempfile.TemporaryDirectory(prefix="umdev-demo-") as folder:
        socket_path = str(Path(folder, "mtty.sock"))
        with plugins().load_parent("mtty").create("mtty-1") as card:
            server = plugins().load_bus("vfio-user").serve(card, path=socket_path)
            thread = threading.Thread(target=server.run, name="umdev-demo-server", daemon=True)
            thread.start()
            host = _open_raw(card.query("terminals")[0])  # type: ignore[index]  # the query's own list
            try:
                say(f"serving {card}: {server.device_argument}")
                say("booting Debian's kernel in QEMU (fetched by the test kit when it is not there yet) ...")
                config = GuestConfig(devices=[socket_path], timeout=TIMEOUT)
                with Guest(config, Path(folder, "guest")) as guest:
                    driver = "".join(re.findall(r"^.*ttyS1 at .*$", guest.dmesg, re.MULTILINE)[:1])
                    say(f"guest: {driver or 'no driver has bound'}")
                    os.write(host, f"{answer}\n".encode())
                    output = guest.run(SCRIPT.format(nonce=sent))
                    guest.poweroff()
                received = os.read(host, 4 * NONCE_BYTES).decode(errors="replace").strip()
            finally:
                os.close(host)
                server.stop()
                thread.join()
                server.close()
    answered = "".join(re.findall(r"^answer (\w+)", output, re.MULTILINE))
    interrupts = "".join(re.findall(r"^.*\bttyS1\b.*$", output, re.MULTILINE)[:1]).strip()
    say(f"guest: {interrupts}")
    say(f"guest -> host: sent {sent}, the host's terminal got {received}")
    say(f"host -> guest: sent {answer}, the guest's tty got {answered}")
    return {
        "driver": driver,
        "interrupts": interrupts,
        "sent": sent,
        "received": received,
        "answered": answered,
        "ok": "16550A" in driver and received == sent and answered == answer,
    }


def _open_raw(path: str) -> int:
    host = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(host)
    return host
