"""Userspace mediated devices: the vendor-neutral core."""
