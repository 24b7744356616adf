"""The Bochs display with a passed-through framebuffer, as a umdev device model."""
