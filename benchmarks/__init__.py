"""Measurements, one file a question: `python -m benchmarks.NAME` prints a JSON object as its last line."""
