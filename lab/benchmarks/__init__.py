"""Measurements that stand alone: one script each, `python -m lab.benchmarks.NAME --help`."""
