"""NO_PROXY in every usual form, and the proxy of a URL."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.storage.http1.proxies import Proxies, parse_no_proxy

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("*", "https://s3.example"),
        ("other, *", "https://s3.example"),
        ("s3.example", "https://s3.example"),
        ("example", "https://s3.example"),
        (".example", "https://s3.example"),
        (".example", "https://example"),
        ("*.example", "https://s3.example"),
        ("S3.Example.", "https://s3.example"),
        ("s3.example", "https://S3.example."),
        ("s3.example:443", "https://s3.example"),
        ("s3.example:9000", "http://s3.example:9000"),
        ("a s3.example", "https://s3.example"),
        ("a,,s3.example,", "https://s3.example"),
        ("https://s3.example", "https://s3.example"),
        ("localhost", "http://localhost:9000"),
        ("127.0.0.1", "http://127.0.0.1:9000"),
        ("127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("10.0.0.0/8", "http://10.1.2.3:9000"),
        ("10.0.0.1/8", "http://10.1.2.3:9000"),
        ("10.0.0.0/8:9000", "http://10.1.2.3:9000"),
        ("10.0.0.0/8", "http://[::ffff:10.1.2.3]:9000"),
        ("::1", "http://[::1]:9000"),
        ("[::1]", "http://[::1]:9000"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("0:0::1", "http://[::1]:9000"),
        ("fd00::/8", "http://[fd00::2]"),
        ("[fd00::]/8", "http://[fd00::2]"),
        ("[fd00::/8]", "http://[fd00::2]"),
    ],
)
def test_a_host_of_no_proxy_is_reached_directly(no_proxy: str, url: str) -> None:
    """A proxy that knows no private host would refuse every upload."""
    proxies = Proxies({"http": PROXY, "https": PROXY}, no_proxy)

    assert proxies.proxy_of(httpx.URL(url)) is None


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("", "https://s3.example"),
        ("3.example", "https://s3.example"),
        ("s3.example.org", "https://s3.example"),
        ("s3.example:80", "https://s3.example"),
        ("http://s3.example", "https://s3.example"),
        ("10.0.0.0/8", "http://11.1.2.3"),
        ("10.0.0.0/8", "http://host-10.0.0.1.example"),
        ("127.0.0.1:9001", "http://127.0.0.1:9000"),
        ("[::1]:9001", "http://[::1]:9000"),
        ("[::1", "http://[::1]:9000"),
        ("[x]", "https://x"),
        (".", "https://s3.example"),
    ],
)
def test_every_other_host_is_reached_through_the_proxy(no_proxy: str, url: str) -> None:
    """Requests would bypass the proxy that a network demands."""
    proxies = Proxies({"http": PROXY, "https": PROXY}, no_proxy)

    assert proxies.proxy_of(httpx.URL(url)) == PROXY


def test_the_proxy_of_a_scheme_is_preferred() -> None:
    """HTTPS_PROXY would have no effect beside ALL_PROXY."""
    proxies = Proxies({"https": "a:1", "all": "http://b:1"}, "")

    assert proxies.proxy_of(httpx.URL("https://s3.example")) == "http://a:1"
    assert proxies.proxy_of(httpx.URL("http://s3.example")) == "http://b:1"
    assert proxies.urls() == {"http://a:1", "http://b:1"}
    assert Proxies({"https": "a:1"}, "").proxy_of(httpx.URL("http://s3.example")) is None


@given(st.text(max_size=40) | st.text(alphabet="[]:/.*%0123456789abcdef", max_size=40))
def test_no_entry_stops_the_daemon(text: str) -> None:
    """A mistyped entry would end the daemon with a traceback."""
    for entry in parse_no_proxy(text):
        entry.covers("http", "s3.example", 80)
        entry.covers("http", "::1", 80)
