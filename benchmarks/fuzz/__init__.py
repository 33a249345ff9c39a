"""Fuzzing of what reads the wire: `python -m benchmarks.fuzz leak --seconds 60`."""
