"""Reads over a year of results, beside Django and its ORM on the same table: `make bench-reads`."""
