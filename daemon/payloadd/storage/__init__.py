"""Stores: where objects go (S3, a folder). This package knows nothing of jobs."""
