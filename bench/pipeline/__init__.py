"""From a tick to a committed row, beside what people would otherwise run: `make bench-pipeline`, docs/benchmarks.md."""
