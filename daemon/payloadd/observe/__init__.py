"""Observe the process: health and its snapshot, metrics, logs."""
