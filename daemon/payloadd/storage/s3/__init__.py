"""A store in S3, or in any server that speaks its protocol; see README.md beside this file."""
