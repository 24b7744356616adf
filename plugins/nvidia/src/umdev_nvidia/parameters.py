"""`vgpu_params`: the text by which a vGPU is tuned, as `key=value, key=value`.

Facts: NVIDIA, "Virtual GPU Software User Guide" (vGPU plugin parameters): a mediated device has a file of that name.
"""

from __future__ import annotations

from umdev.device import InvalidArgument

FRAME_RATE_LIMITER, DISABLE_VNC = "frame_rate_limiter", "disable_vnc"
DEFAULTS = {FRAME_RATE_LIMITER: True, DISABLE_VNC: False}
"""There is no display here, so nothing depends on `disable_vnc`; it is taken so that settings of real hosts are."""


def parse(text: str) -> dict[str, bool]:
    """All parameters, those not named with their defaults. Raises: InvalidArgument."""
    found: dict[str, bool] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in DEFAULTS:
            raise InvalidArgument(f"vgpu_params has no {key!r}; it has: {', '.join(DEFAULTS)}")
        if value not in ("0", "1"):
            raise InvalidArgument(f"vgpu_params: {key} is 0 or 1, not {value!r}")
        if key in found:
            raise InvalidArgument(f"vgpu_params names {key} twice")
        found[key] = value == "1"
    return {**DEFAULTS, **found}
