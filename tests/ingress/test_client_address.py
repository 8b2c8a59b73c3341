"""The address of a client behind proxies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.config.parsers import trusted_peers
from payloadd.ingress.client_address import Mode, client_address

TRUSTED = trusted_peers("10.0.0.0/8, ::1, 2001:db8::/32, unix")


@pytest.mark.parametrize(
    ("peer", "header", "expected"),
    [
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("unix", "198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.1, 10.9.9.9", "198.51.100.1"),
        ("10.0.0.1", "10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("10.0.0.1", "1.1.1.1, garbage", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "[2001:DB9::1]:4711", "2001:db9::1"),
        ("10.0.0.1", "2001:db9::1", "2001:db9::1"),
        ("10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "[::FFFF:c633:6401]:4711", "198.51.100.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", ", ,", "10.0.0.1"),
    ],
)
def test_x_forwarded_for_is_read_from_its_end(peer: str, header: str | None, expected: str) -> None:
    """A client would choose its address by sending the header itself."""
    assert client_address(peer, header, "x-forwarded-for", TRUSTED) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("for=198.51.100.1", "198.51.100.1"),
        ("For=198.51.100.1;proto=https;by=10.0.0.1", "198.51.100.1"),
        ('proto=https; for="[2001:db9::1]:4711"', "2001:db9::1"),
        ('for="198.51.100.1:80"', "198.51.100.1"),
        ("for=1.1.1.1, for=198.51.100.1, for=10.9.9.9", "198.51.100.1"),
        ("for=1.1.1.1, for=unknown", "10.0.0.1"),
        ("for=1.1.1.1, for=_hidden", "10.0.0.1"),
        ("xfor=1.1.1.1", "10.0.0.1"),
        ("198.51.100.1", "10.0.0.1"),
    ],
)
def test_forwarded_is_read_from_its_end(header: str, expected: str) -> None:
    """RFC 7239, sections 4 and 6."""
    assert client_address("10.0.0.1", header, "forwarded", TRUSTED) == expected


@given(st.text(), st.sampled_from(["x-forwarded-for", "forwarded"]))
def test_any_header_gives_an_address(header: str, mode: Mode) -> None:
    """An odd header would be answered 500."""
    assert client_address("10.0.0.1", header, mode, TRUSTED)


def test_a_long_header_is_read_within_a_bound() -> None:
    """A header of a megabyte would take time for each request."""
    header = "198.51.100.1, " + "10.0.0.2, " * 100_000 + "10.0.0.3"
    assert client_address("10.0.0.1", header, "x-forwarded-for", TRUSTED).startswith("10.")


@pytest.mark.parametrize("start", range(12))
def test_a_long_header_is_cut_between_entries(start: int) -> None:
    """The end of an address could be another address, of a client that is not involved."""
    filler = ", 10.0.0.2" * 408
    header = "10.198.51.100" + filler + " " * start
    assert client_address("10.0.0.1", header, "x-forwarded-for", TRUSTED).startswith("10.")


def test_the_whole_entries_of_a_long_header_are_read() -> None:
    """The address that the proxy has stated last would be lost."""
    header = "1.1.1.1, " * 1000 + "198.51.100.1"
    assert client_address("10.0.0.1", header, "x-forwarded-for", TRUSTED) == "198.51.100.1"
