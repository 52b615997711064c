"""The command line: `refresher`."""
