"""Receives payloads by HTTP: the apps, the server, and the fast path."""
