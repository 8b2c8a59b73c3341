"""The journal in PostgreSQL, which several processes share; README.md describes it."""
