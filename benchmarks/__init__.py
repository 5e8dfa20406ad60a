"""Measurements, each a command that writes its figures as JSON to `benchmarks/results/`."""
