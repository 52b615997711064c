"""The recorder draining a backlog, beside what asyncpg inserts and nats-py fetches: `make bench-recorder`, docs/benchmarks.md."""
