"""Reasons for which an address is refused."""

from __future__ import annotations

from payloadd.config.reasons import why_no_endpoint


def test_an_endpoint_may_be_a_complete_name_with_a_period() -> None:
    """A name that no search domain is added to ends with one (RFC 1034, section 3.1)."""
    assert why_no_endpoint("http://minio.example.:9000") is None
    assert why_no_endpoint("http://minio..:9000") is not None
