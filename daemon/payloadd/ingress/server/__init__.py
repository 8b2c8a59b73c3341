"""Accept connections, limit them, and serve them with Hypercorn or the fast path."""
