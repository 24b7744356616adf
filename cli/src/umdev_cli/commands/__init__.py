"""One module for each command; `umdev_cli.lazy` imports the one that is used."""
