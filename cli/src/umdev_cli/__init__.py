"""The umdev command."""
