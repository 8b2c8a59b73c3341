"""The tests; folders mirror ``daemon/``, ``python -m tests`` runs them all."""
