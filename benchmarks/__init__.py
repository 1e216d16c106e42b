"""Benchmarks a user can run: ``python -m benchmarks.run`` measures, ``python -m benchmarks.report`` shows."""
