"""The vGPU's C with its C tests, under the sanitizers."""

from pathlib import Path

HERE = Path(__file__).parent
PLUGIN = HERE.parent
NATIVE = PLUGIN / "src" / "umdev_intel_gvt" / "native"


def test_the_c_is_clean(run_sanitized):
    run_sanitized(
        [*(HERE / "native").glob("*.c"), *NATIVE.glob("*.c")], includes=[PLUGIN / "include", NATIVE, HERE / "native"]
    )
