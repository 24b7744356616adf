"""`umdev demo --guest linux`: Debian's kernel in stock QEMU binds its serial driver to a card served from here."""

from __future__ import annotations

import os
import re
import secrets
import select
import tempfile
import threading
import tty
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from umdev.plugins import plugins
from umdev_testkit.guest import Guest, GuestConfig

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 400.0
NONCE_BYTES = 16
_LOOK_MS = 50
"""How often the host's side looks whether it still has somebody to talk to."""
_LINE_LIMIT = 4096

# Raw, without echo, and with hardware flow control: the card delivers only what the driver asks for. The port stays
# open from before that is set, and the guest speaks first: what came earlier would be echoed and dropped.
SCRIPT = """
exec 3<>/dev/ttyS1
stty raw -echo crtscts <&3
echo {nonce} >&3
read -t 120 answer <&3
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
                with Guest(config, Path(folder, "guest")) as guest, _Listener(host, answer) as listener:
                    driver = "".join(re.findall(r"^.*ttyS1 at .*$", guest.dmesg, re.MULTILINE)[:1])
                    say(f"guest: {driver or 'no driver has bound'}")
                    output = guest.run(SCRIPT.format(nonce=sent))
                    guest.poweroff()
                received = listener.heard
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
    ok = "16550A" in driver and received == sent and answered == answer
    say("ok: both numbers came through" if ok else "FAILED")
    return {
        "driver": driver,
        "interrupts": interrupts,
        "sent": sent,
        "received": received,
        "answered": answered,
        "ok": ok,
    }


class _Listener:
    """Waits in a thread for a line on the terminal `host`, and writes `answer` then; ends with its block."""

    def __init__(self, host: int, answer: str) -> None:
        self._host, self._answer = host, answer
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk, name="umdev-demo-host", daemon=True)
        self._line = b""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def heard(self) -> str:
        """The line, or what came of it; whole once the block has ended."""
        return self._line.decode(errors="replace").strip()

    def _talk(self) -> None:
        poll = select.poll()
        poll.register(self._host, select.POLLIN)
        while not self._line.endswith(b"\n") and len(self._line) < _LINE_LIMIT:
            if poll.poll(_LOOK_MS):
                try:
                    part = os.read(self._host, 1)
                except OSError:  # the terminal has hung up
                    return
                if not part:
                    return
                self._line += part
            elif self._over.is_set():
                return
        os.write(self._host, f"{self._answer}\n".encode())


def _open_raw(path: str) -> int:
    host = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(host)
    return host
