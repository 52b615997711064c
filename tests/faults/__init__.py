"""The fault suite: `make test-faults` kills, freezes, cuts and fills up each part of a running system, and counts the rows.

Every scenario runs real processes under load: schedules of one second, for which `ledger` works out the instants that were
due and compares them with the rows. `scenario` holds the bars and makes the table. docs/faults.md says what is measured.
"""
