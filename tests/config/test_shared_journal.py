"""The setting JOURNAL_URL."""

from __future__ import annotations

import pytest

from payloadd.config.settings import load
from payloadd.errors import SettingsError


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/journal",
        "postgres://user:pass%20word@host:5433/journal?sslmode=verify-full",
        "postgresql://one:5432,two:5433/journal?target_session_attrs=read-write",
        "postgresql:///journal?host=/run/postgresql",
    ],
)
def test_urls_of_postgresql_are_taken_as_they_are(url: str) -> None:
    """A connection would need parameters that cannot be written."""
    assert load({"JOURNAL_URL": url}).journal_url == url


@pytest.mark.parametrize(
    "url", ["mysql://host/journal", "postgresql://host", "host/journal", "postgresql://h/a b"]
)
def test_other_texts_are_refused_without_being_shown(url: str) -> None:
    """The daemon would start with another journal than its operator wants, or show a password."""
    with pytest.raises(SettingsError, match=r"JOURNAL_URL.*postgresql://\[user") as caught:
        load({"JOURNAL_URL": url})
    assert url not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("DURABILITY", "memory", "JOURNAL_URL, DURABILITY: memory is not allowed together"),
        ("MAX_LENGTH", "65MiB", "MAX_LENGTH: 65MiB is not allowed with JOURNAL_URL; allowed is 64"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(name: str, value: str, text: str) -> None:
    """The daemon would promise what it does not keep, or lose its lane in a commit."""
    environ = {name: value, "MAX_QUEUE_BYTES": "100MiB"}
    with pytest.raises(SettingsError, match=text):
        load({"JOURNAL_URL": "postgresql://host/journal", **environ})
    load(environ)
