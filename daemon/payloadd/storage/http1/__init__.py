"""The HTTP/1.1 transport of the S3 client."""
