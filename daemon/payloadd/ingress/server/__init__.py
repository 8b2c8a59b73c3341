"""Accept connections, bound them, and serve them by Hypercorn."""
