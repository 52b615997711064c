"""The command line: `refresher`.

Consumes the HTTP API; only `doctor`, `migrate`, `run`, `backup`, `restore` and `replay` go to NATS
and Postgres themselves. One module per group of commands. They import what is heavy where they use it: `refresher --help`
must be there at once.
"""
