"""No part of a password in a URL is ever shown, independent of its characters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from payloadd.config import settings as config
from payloadd.errors import SettingsError
from payloadd.redaction import hide_secrets, hide_userinfo, hide_userinfo_in_sentence
from payloadd.storage.http1.proxies import proxies_from_environment
from payloadd.storage.s3.client import S3Client

if TYPE_CHECKING:
    from pathlib import Path

# Pieces that occur in no message of the daemon, separated by characters that confuse parsers of
# URLs.
pieces = st.text("QXZ789", min_size=5, max_size=8)
glue = st.sampled_from(
    [
        *"/@:?#%&=+~ \\'\"[]<>|;,!$",
        "//",
        "://",
        "@/",
        "/@",
        "%2F",
        "%40",
        "%",
        "\t",
        "\n",
        "ü",
        "💥",
    ]
)
passwords = st.lists(st.tuples(pieces, glue), min_size=1, max_size=4).map(
    lambda parts: "".join(piece + char for piece, char in parts) + "Z7Q9X8Z"
)
schemes = st.sampled_from(["https://", "http://", "s3://", "file://", "ftp://", "unix:/", "//"])
users = st.sampled_from(["user:", "", ":", "AKIA:"])
hosts = st.sampled_from(["host", "host:443", "host/path", "127.0.0.1:1", "[::1]:1/x", ""])
PIECE = re.compile(r"[QXZ789]{5,}")


def shows(text: str, password: str) -> list[str]:
    """Return the pieces of a password that a text shows."""
    return [piece for piece in PIECE.findall(password) if piece in text]


@given(schemes, users, passwords, hosts)
@example("https://", "user:", "pa/ss", "host")
@example("https://", "user:", "p@ss/wo@rd", "host")
def test_no_piece_of_a_password_is_left(scheme: str, user: str, password: str, host: str) -> None:
    """Otherwise the log of a daemon that refused a password would contain it."""
    url = f"{scheme}{user}{password}@{host}"
    assert password not in hide_userinfo(url)
    assert not shows(hide_userinfo(url), password)
    assert hide_userinfo(url).endswith(f"***@{host}")
    if scheme.endswith("//") and not re.search(r"\s", password):
        sentence = f"cannot connect to '{url}': no route"
        assert not shows(hide_userinfo_in_sentence(sentence), password)


def test_text_without_a_user_is_unchanged() -> None:
    """Otherwise an operator could not see the wrong value."""
    for text in ("https://host/path", "s3://bucket", "10 MB", "", "/a/b"):
        assert hide_userinfo(text) == hide_userinfo_in_sentence(text) == text


@pytest.mark.parametrize(
    "name", ["STORE_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "BIND", "ADMIN_BIND"]
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(schemes.filter(lambda text: text != "unix:/"), users.filter(bool), passwords, hosts)
def test_no_setting_accepts_or_shows_a_password(
    tmp_path: Path, name: str, scheme: str, user: str, password: str, host: str
) -> None:
    """Otherwise a mistake in a unit's environment would put the password into the system's log."""
    url = f"{scheme}{user}{password}@{host}"
    file = tmp_path / name.lower()
    for environ in ({name: url}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}):
        file.write_text(url, encoding="utf-8")
        with pytest.raises(SettingsError) as caught:
            config.load(environ)
        assert not shows(str(caught.value), password)


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"])
@settings(max_examples=30)  # httpx creates a TLS context each time
@given(scheme=st.sampled_from(["http://", "https://", "", "socks5://", "ftp://"]), data=st.data())
def test_no_proxy_variable_shows_a_password(name: str, scheme: str, data: st.DataObject) -> None:
    """Otherwise the log of a daemon that could not parse a proxy's URL would show its password."""
    password = data.draw(passwords)
    url = f"{scheme}{data.draw(users)}{password}@{data.draw(hosts)}"
    with pytest.MonkeyPatch.context() as patch:
        for other in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            patch.delenv(other, raising=False)
            patch.delenv(other.lower(), raising=False)
        patch.setenv("HTTP_PROXY" if name == "NO_PROXY" else name, "http://127.0.0.1:1")
        patch.setenv(name, url)
        problems: list[str] = []
        try:
            S3Client(1, 1.0, secure=False)
        except SettingsError as error:
            problems = error.problems
    assert not shows(str(problems), password)


def test_a_percent_encoded_password_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a proxy that requires a password could not be used at all."""
    url = f"http://user:{quote('pa/ss@word?#', safe='')}@127.0.0.1:3128"
    monkeypatch.setenv("HTTPS_PROXY", url)
    assert proxies_from_environment()["https"] == url
    S3Client(1, 1.0, secure=False)


def test_a_proxy_password_with_a_slash_is_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise an operator would have to guess the variable, and how to fix it."""
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pa/ss@proxy:3128")
    with pytest.raises(SettingsError) as caught:
        S3Client(1, 1.0, secure=False)
    (problem,) = caught.value.problems
    assert problem.startswith("HTTPS_PROXY: 'http://***@proxy:3128' is not allowed; allowed is")
    assert "percent-encoded" in problem


@given(st.text(min_size=1).filter(lambda text: "*" not in text), st.text(), st.text())
def test_a_secret_is_hidden_in_a_text(secret: str, before: str, after: str) -> None:
    """Otherwise an error of S3 that repeats a session token would put it into the log."""
    for repeated in (secret, quote(secret, safe="")):
        hidden = hide_secrets(f"{before}{repeated}{after}", (secret,))
        assert secret not in hidden
