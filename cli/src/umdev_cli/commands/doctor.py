"""`umdev doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click

from umdev_cli import output
from umdev_cli.failures import Exit


@click.command
@click.option("--json", "as_json", is_flag=True, help="Write JSON instead of text.")
def command(*, as_json: bool) -> int:
    """Say what this host can do, service by service, and how to get what is missing.

    The exit code is 4 when something is broken, 0 when umdev works, if only without what is marked "missing".
    """
    from umdev_cli import checks

    with output.waiting("looking at this host"):
        rows = list(checks.rows())
    if as_json:
        output.dump_json([asdict(row) for row in rows])
    else:
        marks = {True: "ok", None: "missing", False: "BROKEN"}
        output.table(
            ("SERVICE", "CHECK", "", "FOUND"), [(row.service, row.check, marks[row.ok], row.text) for row in rows]
        )
        remedies = [row for row in rows if row.remedy]
        if remedies:
            click.echo()
        for row in remedies:
            output.paragraph(f"{row.check}: {row.remedy}")
    return Exit.NOT_SUPPORTED if any(row.ok is False for row in rows) else Exit.OK
