"""payloadd: takes JSON payloads by HTTP POST and stores them in S3."""

__version__ = "0.2.0"
