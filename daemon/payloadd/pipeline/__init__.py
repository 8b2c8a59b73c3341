"""Bring accepted requests into the store; knows no HTTP, no SQL and no S3."""
