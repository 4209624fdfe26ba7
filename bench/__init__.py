"""Benchmarks: `python -m bench.NAME` measures and writes bench/results/NAME.json."""
