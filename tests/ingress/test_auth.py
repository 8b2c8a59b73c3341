"""Tokens of clients: the file, the header, and what is never shown."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.errors import SettingsError
from payloadd.ingress.auth import Client, TokenFile, new_token, token_digest
from payloadd.ingress.problem import Problem

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path


def digest(token: str) -> str:
    """Return the digest of a token as the file has it."""
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    """Read a file with two clients, one of them with two streams only."""
    path = tmp_path / "tokens"
    path.write_text(
        f"# a comment\n\nweb:{digest('w')}  # all\nci:{digest('c').upper()}:clicks, errors\n"
    )
    return TokenFile(path)


def basic(text: bytes) -> str:
    """Return Basic credentials."""
    return f"Basic {b64encode(text).decode()}"


@pytest.mark.parametrize(
    "header", ["Bearer w", "bearer  w", " BEARER w ", basic(b"anything:w"), basic(b":w")]
)
def test_a_known_token_is_a_client(tokens: TokenFile, header: str) -> None:
    """A client that follows the RFCs would be kept out."""
    assert tokens.authenticate(token_digest(header)) == Client("web", None)


def test_a_token_may_be_for_some_streams_only(tokens: TokenFile) -> None:
    """A token of one team would write into the objects of another."""
    assert tokens.authenticate(token_digest("Bearer c")) == Client(
        "ci", frozenset({"clicks", "errors"})
    )


@pytest.mark.parametrize(
    "header",
    [
        None, "", "w", "Bearer", "Bearer ", "Bearer x", "Bearer w w", "Bearer w, Bearer w",
        "Token w", "Basic w", basic(b"w"), basic(b"w:"), basic(b"w:x"), "Basic !", "Bearer \u00e9",
        f"Bearer {digest('w')}",
    ],
)  # fmt: skip
def test_other_headers_are_refused(tokens: TokenFile, header: str | None) -> None:
    """Anybody would get in."""
    with pytest.raises(Problem) as caught:
        tokens.authenticate(token_digest(header))
    problem = caught.value
    assert (problem.status, problem.code) == (401, "UNAUTHENTICATED")
    challenge = problem.headers["WWW-Authenticate"]
    assert challenge.startswith("Bearer ")
    assert ('error="invalid_token"' in challenge) is bool(header)
    if header and len(header) > 8:
        assert header not in problem.detail


@given(st.text())
def test_any_header_gets_an_answer(header: str) -> None:
    """An odd header would be answered 500."""
    tokens = object.__new__(TokenFile)
    tokens._clients = {}
    with pytest.raises(Problem):
        tokens.authenticate(token_digest(header))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "complete"), ("\n", "no token"), ("# only a comment\n", "no token"),
        (f"a:{digest('a')}", "complete"), (f"a:{digest('a')[:-1]}\n", "line 1"),
        (f"\na {digest('a')}\n", "line 2"), (f"a:{digest('a')}:\n", "line 1"),
        (f"a:{digest('a')}:UP\n", "'UP'"), (f"a:{digest('a')}\nb:{digest('a')}\n", "line 2"),
        (f":{digest('a')}\n", "line 1"), (f"a:{digest('a')}:x:y\n", "line 1"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, named: str) -> None:
    """A daemon without tokens, or with half of them, would start."""
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(SettingsError, match="AUTH_TOKENS") as caught:
        TokenFile(path)
    assert named in str(caught.value)
    path.unlink()
    with pytest.raises(SettingsError, match="AUTH_TOKENS"):
        TokenFile(path)


def test_a_reload_replaces_the_tokens(
    tokens: TokenFile, tmp_path: Path, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """A token that was taken out would work until the next restart."""
    (tmp_path / "tokens").write_text(f"new:{digest('n')}\n")
    tokens.reload()
    assert tokens.authenticate(token_digest("Bearer n")).name == "new"
    with pytest.raises(Problem):
        tokens.authenticate(token_digest("Bearer w"))
    assert [line["event"] for line in log_lines] == ["tokens_reloaded"]


def test_a_file_that_is_being_written_changes_nothing(
    tokens: TokenFile, tmp_path: Path, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """All clients would be refused until the next reload."""
    (tmp_path / "tokens").write_text(f"new:{digest('n')}\nweb:{digest('w')[:20]}")
    tokens.reload()
    assert tokens.authenticate(token_digest("Bearer w")).name == "web"
    assert [line["event"] for line in log_lines] == ["tokens_not_reloaded"]


def test_a_new_token_and_its_line_fit(tmp_path: Path) -> None:
    """The printed line would not let the printed token in."""
    token, line = new_token("sensor-1", "clicks,errors")
    assert token not in line
    (tmp_path / "tokens").write_text(f"{line}\n")
    client = TokenFile(tmp_path / "tokens").authenticate(token_digest(f"Bearer {token}"))
    assert client == Client("sensor-1", frozenset({"clicks", "errors"}))
    assert new_token("x")[0] != new_token("x")[0]
    for wrong in (("a:b", ""), ("", ""), ("a", "UP")):
        with pytest.raises(ValueError, match="is not"):
            new_token(*wrong)
