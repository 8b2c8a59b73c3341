"""From an accepted request to a stored object; knows nothing of HTTP or S3."""
