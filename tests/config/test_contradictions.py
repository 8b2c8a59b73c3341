"""Settings that are allowed alone and not together."""

from __future__ import annotations

import pytest

from payloadd.config import settings as config
from payloadd.errors import SettingsError
from payloadd.model.keys import key_problems
from tests.config.wrong_settings import problems


def test_a_template_without_the_stream_is_refused_with_streams() -> None:
    """Nothing would tell the objects of one stream from those of another, for good."""
    with pytest.raises(SettingsError) as caught:
        config.load({"STREAMS": "clicks", "KEY_TEMPLATE": "{date}/{{stream}}/{id}"}, key_problems)
    (problem,) = caught.value.problems
    assert problem.startswith("KEY_TEMPLATE: '{date}/{{stream}}/{id}' is not allowed with STREAMS")
    assert "{stream}" in problem.partition("allowed is")[2]


def test_a_batch_must_not_outlast_the_requests_that_wait_for_it() -> None:
    """With DURABILITY=store each request would time out while its batch fills."""
    slow = {"BATCH_LINGER": "30s", "DURABILITY": "store"}
    (problem,) = problems(**slow)
    assert problem.startswith("BATCH_LINGER, REQUEST_TIMEOUT: 30s and 30s are not allowed")
    config.load({**slow, "REQUEST_TIMEOUT": "31s"})
    config.load({"BATCH_LINGER": "30s"})


def test_settings_that_contradict_each_other_are_reported() -> None:
    """The largest request could never be queued, and uploads would fail without half of a key."""
    found = problems(
        MAX_LENGTH="2MiB", MAX_QUEUE_BYTES="1MiB", AWS_ACCESS_KEY_ID="AKIA", TLS_CLIENT_CA="ca.pem"
    )
    assert "CLIENT_ADDRESS" in problems(TRUSTED_PROXIES="unix")[0]
    assert "TRUSTED_PROXIES" in problems(CLIENT_ADDRESS="forwarded")[0]
    assert [problem.split(":")[0] for problem in found] == [
        "MAX_LENGTH, MAX_QUEUE_BYTES",
        "TLS_CERT, TLS_KEY",
        "AWS_SECRET_ACCESS_KEY",
    ]


@pytest.mark.parametrize(
    ("environ", "named", "text"),
    [
        (
            {"MAX_LENGTH": "100MiB"},
            "MAX_LENGTH",
            "100MiB is not allowed with MAX_QUEUE_BYTES=64MiB, its default",
        ),
        (
            {"MAX_QUEUE_BYTES": "1M"},
            "MAX_QUEUE_BYTES",
            "1MiB is not allowed; allowed is MAX_LENGTH (16MiB, its default) or more",
        ),
        ({"JOURNAL_MAX_BYTES": "1M"}, "JOURNAL_MAX_BYTES", "or more"),
        (
            {"MAX_LENGTH": "2M", "MAX_REQUEST_BYTES": "1M"},
            "MAX_LENGTH, MAX_REQUEST_BYTES",
            "2MiB and 1MiB are not allowed together",
        ),
        (
            {"TLS_CERT": "c.pem"},
            "TLS_KEY",
            "is not set, but TLS_CERT is; allowed is all of them or none",
        ),
        (
            {"TLS_CERT": "c.pem", "TLS_CLIENT_CA": "a.pem"},
            "TLS_KEY",
            "but TLS_CERT, TLS_CLIENT_CA are",
        ),
        ({"TLS_CLIENT_CA": "a.pem"}, "TLS_CERT, TLS_KEY", "are not set, but TLS_CLIENT_CA is"),
        ({"CLIENT_ADDRESS": "proxy"}, "TRUSTED_PROXIES", "is not set, but CLIENT_ADDRESS is"),
        (
            {"AWS_SECRET_ACCESS_KEY": "s"},
            "AWS_ACCESS_KEY_ID",
            "is not set, but AWS_SECRET_ACCESS_KEY is",
        ),
        ({"S3_SSE_KMS_KEY_ID": "k"}, "S3_SSE_KMS_KEY_ID", "is set, but S3_SSE is not"),
        ({"STORE_URL": f"s3://bucket/{'x' * 1000}"}, "STORE_URL", "the prefix has 1000 bytes"),
        (
            {"STORE_URL": f"s3://bucket/{'x/' * 300}", "KEY_TEMPLATE": f"{'y/' * 300}{{id}}"},
            "STORE_URL, KEY_TEMPLATE",
            "1024",
        ),
        ({"KEY_TEMPLATE": f"{'y/' * 600}{{id}}"}, "KEY_TEMPLATE", "1024 bytes in all"),
    ],
)
def test_the_setting_that_an_operator_has_set_is_named(
    environ: dict[str, str], named: str, text: str
) -> None:
    """The message would name a setting that is not in the operator's file."""
    with pytest.raises(SettingsError) as caught:
        config.load(environ, key_problems)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{named}: ")
    assert text in problem


def test_a_wrong_value_is_not_reported_as_missing() -> None:
    """An operator would look for a second fault that is not there."""
    (problem,) = problems(CLIENT_ADDRESS="x-real-ip", TRUSTED_PROXIES="unix")
    assert problem.startswith("CLIENT_ADDRESS: 'x-real-ip'")
