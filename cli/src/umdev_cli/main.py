"""`umdev`: the entry point. Errors become one line and an exit code here, and only here."""

from __future__ import annotations

import os
import sys

import click
import umdev

from .failures import Exit, exit_code, line
from .lazy import LazyGroup

__all__ = ["cli", "main"]


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 not supported here, 5 conflict.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error and what umdev logs.")
@click.version_option(umdev.__version__, "-V", "--version", prog_name="umdev", message="%(prog)s %(version)s")
def cli(*, debug: bool) -> None:
    """Userspace mediated devices: share one parent device out as many virtual PCI devices."""
    if debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(name)s %(levelname)s %(message)s")


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit. Never returns, never shows a traceback without `--debug`."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command with these arguments; returns the exit code."""
    try:
        result = cli.main(arguments, prog_name="umdev", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        return _fail("aborted", Exit.FAILED)
    except click.exceptions.NoArgsIsHelpError as help_:
        click.echo(help_.format_message(), err=True)
        return Exit.USAGE
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return _fail(f"{type(error).__name__}: {error.format_message()}{hint}", Exit.USAGE)
    except click.ClickException as error:
        return _fail(f"{type(error).__name__}: {error.format_message()}", error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", Exit.FAILED)
    except BrokenPipeError:
        # The reader went away. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception as error:  # noqa: BLE001 - plugins may raise anything; the user gets one line
        if "--debug" in arguments:
            import traceback

            traceback.print_exc()
        code = _fail(line(error), exit_code(error))
        for note in getattr(error, "__notes__", ()):
            for each in note.splitlines():
                click.echo(f"  {each}", err=True)
        return code
    return result if isinstance(result, int) else Exit.OK


def _fail(text: str, code: int) -> int:
    click.echo(f"umdev: {text}", err=True)
    return code


if __name__ == "__main__":
    main()
