"""From an accepted request to a stored object; knows no HTTP, no SQL and no S3."""
