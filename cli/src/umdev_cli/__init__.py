"""The `umdev` command."""
