"""A journal in one SQLite file, with segments for large payloads."""
