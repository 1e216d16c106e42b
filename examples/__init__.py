"""Runnable examples: ``python -m examples.sentiment``."""
