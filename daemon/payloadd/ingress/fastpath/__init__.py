"""The HTTP/1.1 fast path in front of Hypercorn."""
