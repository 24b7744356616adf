"""`umdev screenshot UUID OUT.png`: what a display shows, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from umdev.device import InvalidArgument


def picture(frame: dict[str, Any]) -> Any:
    """A Pillow image of a frame. Raises: click.ClickException when the display is off."""
    from PIL import Image

    size = (frame["width"], frame["height"])
    modes = {32: "BGRX", 24: "BGR", 16: "BGR;16"}
    if frame["depth"] not in modes:
        raise click.ClickException("the display is off: no driver has set a mode yet")
    return Image.frombytes("RGB", size, frame["rows"], "raw", modes[frame["depth"]])


@click.command
@click.argument("uuid")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def command(uuid: str, out: Path) -> None:
    """Write what the display UUID shows to OUT, in the format that its ending names."""
    from PIL import Image
    from umdev_cli.client import query

    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise InvalidArgument(f"{out}: no picture can be written in a format of that ending; name it as in screen.png")
    image = picture(query(uuid, "frame"))
    image.save(out)
    click.echo(f"{out}: {image.width} x {image.height}")
