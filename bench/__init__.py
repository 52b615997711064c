"""Benchmarks: each starts real servers and services, measures, and prints what it found with what it ran on."""
