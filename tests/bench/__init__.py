"""The benchmark: CPU time, latency and memory for a payload (``python -m tests.bench``)."""
