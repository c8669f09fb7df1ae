"""Figures of this library, each a ratio taken in one run: ``python -m benchmarks``."""
