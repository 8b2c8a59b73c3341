"""The settings that the status page shows."""

from __future__ import annotations

from dataclasses import fields
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.config import settings as config
from payloadd.config.changed import NOT_SHOWN, changed_settings, value_text

SECRETS: Final = {
    "AWS_ACCESS_KEY_ID": "secret-text",
    "AWS_SECRET_ACCESS_KEY": "secret-text",
    "AWS_SESSION_TOKEN": "secret-text",
    "JOURNAL_URL": "postgresql://user:secret-text@host/journal",
}
PEM: Final = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"


def shown(**environ: str) -> dict[str, str]:
    """Return the values that are shown, by name."""
    return {name: value for name, value, _ in changed_settings(config.load(environ))}


def test_defaults_are_not_shown() -> None:
    """The few settings that matter would be lost among all others."""
    assert changed_settings(config.load({})) == []
    assert shown(MAX_QUEUE="10000", BATCH_LINGER="1000ms", MAX_QUEUE_BYTES="65536KiB") == {}


def test_a_default_that_depends_on_another_setting_is_not_shown() -> None:
    """An operator would look for the line that sets KEY_TEMPLATE, and there is none."""
    assert shown(STREAMS="clicks") == {"STREAMS": "clicks"}
    required = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
    assert shown(**required) == required
    changed = changed_settings(config.load({"STREAMS": "clicks", "KEY_TEMPLATE": "{stream}/{id}"}))
    default = "{stream}/dt={date}/hour={hour}/{id}.ndjson"
    assert ("KEY_TEMPLATE", "{stream}/{id}", default) in changed


@pytest.mark.parametrize(
    ("name", "text", "value", "default"),
    [
        ("MAX_QUEUE", "5", "5", "10000"),
        ("MAX_QUEUE_BYTES", "33554432", "32MiB", "64MiB"),
        ("MAX_QUEUE_BYTES", "16777217", "16777217B", "64MiB"),
        ("JOURNAL_MAX_BYTES", "3GiB", "3GiB", "1GiB"),
        ("BATCH_LINGER", "2500ms", "2.5s", "1s"),
        ("DRAIN_TIMEOUT", "10m", "600s", "30s"),
        ("BIND", "127.0.0.1:1,[::1]:2,unix:/run/x", "127.0.0.1:1,[::1]:2,unix:/run/x",
         "127.0.0.1:8080"),
        ("ADMIN_BIND", "off", "none", "127.0.0.1:8081"),
        ("STORE_URL", "s3://bucket/a/b/", "s3://bucket/a/b", "file://./payloadd-data/objects"),
        ("STORE_URL", "file:///a\u202eb", "file:///a\\u202eb", "file://./payloadd-data/objects"),
        ("STATE_DIR", "/var/x", "/var/x", "./payloadd-data"),
        ("RATE_LIMIT", "100/s burst 500", "100/s burst 500", "none"),
        ("AWS_USE_FIPS_ENDPOINT", "true", "on", "none"),
        ("S3_METADATA", "a=b,c=d", "a=b,c=d", "none"),
        ("CORS_ORIGINS", "https://a.org,https://b.org", "https://a.org,https://b.org", "none"),
        ("PUT_PRICE", "0.0000004", "4e-07", "0.000005"),
    ],
)  # fmt: skip
def test_a_changed_setting_is_shown_as_it_is_written(
    name: str, text: str, value: str, default: str
) -> None:
    """An operator could not compare a value with the default beside it."""
    assert changed_settings(config.load({name: text})) == [(name, value, default)]


def test_trusted_proxies_are_shown() -> None:
    """An operator would read the name of a class."""
    found = shown(TRUSTED_PROXIES="10.0.0.0/8, unix", CLIENT_ADDRESS="forwarded")
    assert found == {"TRUSTED_PROXIES": "10.0.0.0/8,unix", "CLIENT_ADDRESS": "forwarded"}


def test_every_secret_is_hidden() -> None:
    """Every reader of the page would have the secrets."""
    hidden = {item.name.upper() for item in fields(config.Settings) if not item.repr}
    assert hidden == set(SECRETS)
    found = shown(**SECRETS, TLS_CERT=PEM, TLS_KEY=PEM, AWS_CA_BUNDLE=PEM)
    assert all(found[name] == NOT_SHOWN for name in SECRETS)
    assert found["TLS_KEY"].startswith("/proc/self/fd/")
    assert "secret-text" not in str(found)
    assert "c2VjcmV0" not in str(found)


@given(
    st.lists(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40),
        min_size=3,
        max_size=3,
    )
)
def test_no_text_of_a_secret_is_shown(secrets: list[str]) -> None:
    """A secret with characters of a URL or of a list could be taken for something else."""
    names = [name for name in SECRETS if name.startswith("AWS_")]
    settings = config.load(dict(zip(names, secrets, strict=True)))
    assert [value for _, value, _ in changed_settings(settings)] == [NOT_SHOWN] * 3


def test_a_password_in_a_url_is_hidden() -> None:
    """A setting that is a URL may contain one."""
    assert shown(KEY_TEMPLATE="x/{id}", S3_METADATA="to=http://user:pass@host") == {
        "KEY_TEMPLATE": "x/{id}",
        "S3_METADATA": "***@host",
    }


def test_values_of_every_kind_have_a_text() -> None:
    """The page would show what Python calls them."""
    assert [value_text(value) for value in (None, True, False, 1, 0.5, ("a", "b"))] == [
        *("none", "on", "off", "1", "0.5", "a,b"),
    ]
