"""Formats of objects."""
