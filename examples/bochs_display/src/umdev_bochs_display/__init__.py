"""The Bochs display with a passed-through framebuffer, as a umdev device model."""

from umdev.device import DeviceType, Parent

from .display import BochsDisplay

__all__ = ["BochsDisplay", "parent"]

parent = Parent(
    "bochs-display", [DeviceType("bochs-display", "Bochs display", BochsDisplay, "16 MiB framebuffer, VBE and EDID")]
)
