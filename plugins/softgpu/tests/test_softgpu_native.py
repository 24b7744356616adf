"""The engine's C with its C tests, under the sanitizers."""

from pathlib import Path

HERE = Path(__file__).parent
PLUGIN = HERE.parent
SOURCE = PLUGIN / "src" / "umdev_softgpu"


def test_the_c_is_clean(run_sanitized):
    run_sanitized(
        [*(HERE / "native").glob("*.c"), *(SOURCE / "native").glob("*.c")],
        includes=[HERE / "native", PLUGIN / "include", SOURCE / "include", SOURCE / "native"],
    )
