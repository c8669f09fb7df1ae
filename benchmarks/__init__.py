"""Figures of this library, as ratios of one run: ``python -m benchmarks``."""
