"""The vfio-user bus driver of umdev: server and client."""
