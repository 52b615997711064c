"""Many schedules: how late they fire, beside celery beat with its database scheduler: `make bench-scheduler`, docs/benchmarks.md."""
