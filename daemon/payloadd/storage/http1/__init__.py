"""The HTTP/1.1 client transport of the S3 store; it knows nothing of S3."""
