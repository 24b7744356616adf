"""The C loop against requests of every kind, under the sanitizers."""

from pathlib import Path

HERE = Path(__file__).parent
PLUGIN = HERE.parent
NATIVE = PLUGIN / "src" / "umdev_xen" / "native"


def test_the_loop(run_sanitized):
    run_sanitized([*NATIVE.glob("*.c"), HERE / "native" / "loop_test.c"], includes=[PLUGIN / "include", NATIVE])
