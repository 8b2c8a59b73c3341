"""Settings: how they are parsed, and which problems are reported."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.config import settings as config
from payloadd.config.misspelt import misspelt_names
from payloadd.config.parquet_schema import ParquetSchema
from payloadd.config.parsers import FileUrl, Rate, S3Url, TcpAddress, UnixAddress, address
from payloadd.errors import SettingsError
from payloadd.model.keys import key_problems
from tests.support.not_built import NAMES, VALUES


def problems(**environ: str) -> list[str]:
    """Return the problems of settings that are wrong."""
    with pytest.raises(SettingsError) as caught:
        config.load(environ)
    return caught.value.problems


def test_defaults_are_the_documented_ones() -> None:
    """The first command of the README would not work without settings."""
    settings = config.load({})
    assert settings.bind == (TcpAddress("127.0.0.1", 8080),)
    assert settings.admin_bind == TcpAddress("127.0.0.1", 8081)
    assert settings.store_url == FileUrl(Path("payloadd-data/objects"))
    assert settings.max_queue_bytes == 64 * 2**20
    assert settings.drain_timeout == 30.0
    assert settings.aws_region is None
    assert (settings.streams, settings.key_template) == (None, "dt={date}/hour={hour}/{id}.ndjson")
    assert (settings.batch_max_payloads, settings.batch_max_bytes) == (10_000, 8 * 2**20)
    assert settings.batch_linger == 1.0


def test_keys_begin_with_the_stream_by_default() -> None:
    """Objects of all streams would lie in one folder."""
    settings = config.load({"STREAMS": "clicks"}, key_problems)
    assert settings.key_template == "{stream}/dt={date}/hour={hour}/{id}.ndjson"
    assert config.load({"KEY_TEMPLATE": "x/{stream}-{id}"}, key_problems).streams is None


def test_a_template_without_the_stream_is_refused_with_streams() -> None:
    """Nothing would tell the objects of one stream from those of another, for good."""
    with pytest.raises(SettingsError) as caught:
        config.load({"STREAMS": "clicks", "KEY_TEMPLATE": "{date}/{{stream}}/{id}"}, key_problems)
    (problem,) = caught.value.problems
    assert problem.startswith("KEY_TEMPLATE: '{date}/{{stream}}/{id}' is not allowed with STREAMS")
    assert "{stream}" in problem.partition("allowed is")[2]


def test_objects_may_be_larger_than_the_memory_of_the_queue() -> None:
    """Large objects would need as much memory."""
    settings = config.load({"BATCH_MAX_BYTES": "128MiB", "MAX_QUEUE_BYTES": "64MiB"}, key_problems)
    assert settings.batch_max_bytes == 2 * settings.max_queue_bytes


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("MAX_QUEUE_BYTES", "512KiB", "max_queue_bytes", None),
        ("MAX_LENGTH", "1kB", "max_length", 1000),
        ("MAX_LENGTH", "1 MB", "max_length", 10**6),
        ("MAX_LENGTH", "4096", "max_length", 4096),
        ("DRAIN_DELAY", "0s", "drain_delay", 0.0),
        ("DRAIN_TIMEOUT", "500ms", "drain_timeout", 0.5),
        ("DRAIN_TIMEOUT", "1.5m", "drain_timeout", 90.0),
        ("DRAIN_TIMEOUT", "2h", "drain_timeout", 7200.0),
        ("MAX_WORKERS", "8", "max_workers", 8),
        ("MAX_PAYLOADS", "1000", "max_payloads", 1000),
        ("MAX_REQUEST_BYTES", "16MiB", "max_request_bytes", 16 * 2**20),
        ("MAX_CONNECTIONS_PER_CLIENT", "10", "max_connections_per_client", 10),
        ("BIND", "[::1]:0", "bind", (TcpAddress("::1", 0),)),
        (
            "BIND",
            "localhost:80, unix:/run/p.sock",
            "bind",
            (TcpAddress("localhost", 80), UnixAddress("/run/p.sock")),
        ),
        ("ADMIN_BIND", "off", "admin_bind", None),
        ("STORE_URL", "s3://bucket", "store_url", S3Url("bucket", "")),
        ("STORE_URL", "s3://bucket/a/b/", "store_url", S3Url("bucket", "a/b")),
        (
            "STORE_URL",
            "file:///var/lib/with%20space",
            "store_url",
            FileUrl(Path("/var/lib/with space")),
        ),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/", "aws_endpoint_url", "http://127.0.0.1:9000"),
        ("AWS_DEFAULT_REGION", "eu-west-1", "aws_region", "eu-west-1"),
        ("AWS_USE_FIPS_ENDPOINT", "True", "aws_use_fips_endpoint", True),
        ("AWS_USE_DUALSTACK_ENDPOINT", "false", "aws_use_dualstack_endpoint", False),
        (
            "STORE_URL",
            "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/telemetry/a/b",
            "store_url",
            S3Url("arn:aws:s3:us-west-2:123456789012:accesspoint/telemetry", "a/b"),
        ),
        (
            "STORE_URL",
            "s3://arn:aws-cn:s3:cn-north-1:123456789012:accesspoint:telemetry",
            "store_url",
            S3Url("arn:aws-cn:s3:cn-north-1:123456789012:accesspoint:telemetry", ""),
        ),
        ("LOG_LEVEL", "", "log_level", "info"),
        ("AUTH_TOKENS", "/etc/tokens", "auth_tokens", Path("/etc/tokens")),
        ("CORS_ORIGINS", "*", "cors_origins", ("*",)),
        ("CORS_ORIGINS", "https://a.b, http://c:8", "cors_origins", ("https://a.b", "http://c:8")),
        ("RATE_LIMIT", "100/s", "rate_limit", Rate(100.0, 100, "100/s")),
        ("OBJECT_FORMAT", "parquet", "object_format", "parquet"),
        ("PARQUET_SCHEMA", "auto", "parquet_schema", ParquetSchema(seen=True)),
        ("PARQUET_SORT_BY", "_accepted_at, _id", "parquet_sort_by", ("_accepted_at", "_id")),
        ("S3_CONTENT_ENCODING", "on", "s3_content_encoding", "on"),
        ("STREAMS", "clicks", "streams", ("clicks",)),
        ("STREAMS", "a, 0-b_c", "streams", ("a", "0-b_c")),
        ("RATE_LIMIT", "30/m burst 5", "rate_limit", Rate(0.5, 5, "30/m burst 5")),
    ],
)
def test_values_are_parsed_as_documented(name: str, text: str, field: str, value: object) -> None:
    """A wrong value would be used without an error."""
    if value is None and field == "max_queue_bytes":
        assert "MAX_QUEUE_BYTES" in problems(MAX_QUEUE_BYTES=text)[0]  # below MAX_LENGTH
        return
    assert getattr(config.load({name: text}), field) == value


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("MAX_WORKERS", "0", "1 to 1024"),
        ("MAX_WORKERS", "many", "whole number"),
        ("OBJECT_FORMAT", "avro", "one of ndjson, parquet"),
        ("PARQUET_SCHEMA", "/no/such/file", "auto, or a file that can be read (No such file"),
        ("PARQUET_SORT_BY", "a,a", "a comma list of names of columns"),
        ("PARQUET_SORT_BY", "_payload", "not _payload"),
        ("S3_CONTENT_ENCODING", "gzip", "on, off"),
        ("MAX_LENGTH", "1TB", "KiB"),
        ("MAX_LENGTH", "-1", "size"),
        ("UPLOAD_TIMEOUT", "30", "ms, s, m or h"),
        ("UPLOAD_TIMEOUT", "0s", "0.1s to 3600s"),
        ("BIND", "8080", "host:port"),
        ("BIND", "127.0.0.1:70000", "0 to 65535"),
        ("BIND", "::1:80", "[v6]:port"),
        ("BIND", "unix:relative", "unix:/path"),
        ("ADMIN_BIND", "nowhere", "or off"),
        ("STORE_URL", "s3://", "s3://bucket"),
        ("STORE_URL", "s3://Bad_Bucket", "s3://bucket"),
        ("STORE_URL", "s3://b1/x", "3 to 63 characters"),
        ("STORE_URL", "/var/lib/objects", "file:///path"),
        ("COMPRESSION", "lz4", "none, gzip, zstd"),
        ("LOG_LEVEL", "INFO", "debug, info, warning, error"),
        ("KEY_TEMPLATE", " ", "not empty"),
        ("AWS_ENDPOINT_URL_S3", "minio:9000", "http://host"),
        ("AWS_ENDPOINT_URL_S3", "http://[::1", "http://host"),
        ("AWS_ENDPOINT_URL_S3", "http://h:abc", "http://host"),
        ("AWS_ENDPOINT_URL_S3", f"http://{'a' * 64}.x", "http://host"),
        ("AWS_ENDPOINT_URL_S3", "http://h?x=1", "without user"),
        ("AWS_REGION", "a b", "a region's name"),
        ("STORE_URL", "file:///x%00", "file:///path"),
        ("STORE_URL", "s3://arn:aws:s3:us-west-2:1:accesspoint/x", "s3://bucket"),
        ("AWS_USE_FIPS_ENDPOINT", "yes", "one of true, false"),
        ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "1", "one of true, false"),
        ("RATE_LIMIT", "100", "100/s burst 500"),
        ("CORS_ORIGINS", "https://a.b/", "without a path, not 'https://a.b/'"),
        ("ENVELOPE", "clients", "'clients' is none of them"),
        ("CORS_ORIGINS", "*, https://a.b", "allowed is * alone"),
        ("RATE_LIMIT", "0/s", "'0/s' is not allowed; allowed is a number"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "networks such as 10.0.0.0/8"),
        ("TRUSTED_PROXIES", "proxy.example", "addresses"),
        ("STREAMS", "Clicks", "1 to 63 of a-z, 0-9, _ and -"),
        ("STREAMS", "a,", "not ''"),
        ("STREAMS", "_a", "a letter or digit first"),
        ("STREAMS", "a" * 64, "1 to 63"),
        ("STREAMS", "a/b", "not 'a/b'"),
        ("STREAMS", "a,b,a", "'a' is there twice"),
        ("STREAMS", "a,default", "without 'default'"),
        ("STREAMS", ",".join(f"s{number}" for number in range(1001)), "at most 1000 names"),
        ("CLIENT_ADDRESS", "x-real-ip", "x-forwarded-for, forwarded"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, text: str, allowed: str) -> None:
    """An operator would have to guess which setting is wrong, and what is allowed."""
    (problem,) = problems(**{name: text})
    assert problem.startswith(f"{name}: ")
    assert repr(text) in problem
    assert allowed in problem


def test_all_wrong_settings_are_reported_together() -> None:
    """An operator would need a restart for each wrong setting."""
    found = problems(
        MAX_WORKERS="x", BIND="x", STORE_URL="x", COMPRESSION="x", DURABILITY="x", ENVELOPE="/x"
    )
    names = [problem.split(":")[0] for problem in found]
    assert names == ["MAX_WORKERS", "BIND", "STORE_URL", "COMPRESSION", "DURABILITY", "ENVELOPE"]


def test_settings_that_contradict_each_other_are_reported() -> None:
    """The largest request could never be queued, and uploads would fail without half of a key."""
    found = problems(
        MAX_LENGTH="2MiB", MAX_QUEUE_BYTES="1MiB", AWS_ACCESS_KEY_ID="AKIA", TLS_CLIENT_CA="ca.pem"
    )
    assert "CLIENT_ADDRESS" in problems(TRUSTED_PROXIES="unix")[0]
    assert "TRUSTED_PROXIES" in problems(CLIENT_ADDRESS="forwarded")[0]
    assert [problem.split(":")[0] for problem in found] == [
        "MAX_QUEUE_BYTES",
        "TLS_CERT, TLS_KEY",
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
    ]


def test_credentials_of_systemd_take_precedence_over_the_environment(tmp_path: Path) -> None:
    """Secrets would have to be in the environment, which `systemctl show` prints."""
    (tmp_path / "aws_access_key_id").write_text("AKIAFILE\n")
    (tmp_path / "aws_secret_access_key").write_text("from-file\n")
    (tmp_path / "unrelated").write_text("x")
    (tmp_path / "folder").mkdir()
    settings = config.load(
        {
            "CREDENTIALS_DIRECTORY": str(tmp_path),
            "AWS_ACCESS_KEY_ID": "AKIAENV",
            "AWS_SECRET_ACCESS_KEY": "from-environment",
        }
    )
    assert settings.aws_access_key_id == "AKIAFILE"
    assert settings.aws_secret_access_key == "from-file"


def test_credentials_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    """The daemon would start without the secrets, and every upload would fail."""
    (problem,) = problems(CREDENTIALS_DIRECTORY=str(tmp_path / "absent"))
    assert problem.startswith("CREDENTIALS_DIRECTORY: cannot read")


def test_no_secret_is_shown(tmp_path: Path) -> None:
    """A secret would be in the log."""
    settings = config.load({"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "hunter2"})
    assert "hunter2" not in repr(settings)
    (tmp_path / "aws_session_token").write_text(" \n")
    (problem,) = problems(CREDENTIALS_DIRECTORY=str(tmp_path))
    assert problem.startswith("AWS_SESSION_TOKEN: (not shown)")


@given(st.text())
def test_no_text_crashes_a_parser(text: str) -> None:
    """An operator would see a traceback instead of an error message."""
    for name in ("MAX_WORKERS", "MAX_LENGTH", "BIND", "STORE_URL", "UPLOAD_TIMEOUT",
                 "AWS_ENDPOINT_URL"):  # fmt: skip
        with suppress(SettingsError):
            config.load({name: text})


def test_addresses_are_written_as_they_are_read() -> None:
    """The log would show an address in a form that the setting refuses."""
    for text in ("127.0.0.1:80", "[::1]:80", "unix:/run/p.sock"):
        assert str(address(text)) == text


def test_no_password_in_a_url_is_shown() -> None:
    """The error message would contain the password."""
    (problem,) = problems(AWS_ENDPOINT_URL="http://user:hunter2@minio:9000")
    assert "hunter2" not in problem
    assert "http://***@minio:9000" in problem


def test_a_secret_that_is_not_utf_8_is_refused() -> None:
    """The daemon would end at its first upload, after a 202."""
    problem = problems(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="\udcff")[0]
    assert problem.startswith("AWS_SECRET_ACCESS_KEY: (not shown)")


def test_problems_of_further_checks_are_reported_with_the_rest() -> None:
    """A wrong KEY_TEMPLATE would be reported only after all other settings are fixed."""
    with pytest.raises(SettingsError) as caught:
        config.load({"MAX_WORKERS": "x", "KEY_TEMPLATE": "{nope}"}, check=key_problems)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "MAX_WORKERS",
        "KEY_TEMPLATE",
    ]


def test_the_readme_lists_every_setting() -> None:
    """The README would lack a setting, or show a wrong default."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| (\S+) \| .*\|$", readme, re.MULTILINE)
    settings = {
        item.name.upper(): item.metadata["default"] or "none"
        for item in fields(config.Settings)
        if not item.name.startswith("aws_")
    }
    assert dict(rows) == settings


def test_a_misspelt_setting_is_found_and_foreign_variables_are_not() -> None:
    """An operator would believe that a setting is in force."""
    environ = {
        "COMPRESION": "zstd", "BATCH_MAX_PAYLOAD": "9", "STORE_URI": "s3://b", "bind": "x",
        "MAX_WORKERS": "1", "STATE_DIRECTORY": "/x", "STREAMS": "a", "PATH": "/bin", "HOME": "/",
        "AWS_ENDPOINT_URL_SQS": "x", "AWS_REGION_NAME": "x", "LOGS_DIRECTORY": "/x",
        "CACHE_DIRECTORY": "/x", "SSL_CERT_FILE": "x", "LOGNAME": "x", "JOURNAL_STREAM": "8:1",
        "HTTP_TIMEOUT": "1", "MAX_RETRIES": "1", "TERM": "x", "SHELL": "x", "NO_COLOR": "1",
    }  # fmt: skip
    assert misspelt_names(environ) == {
        "COMPRESION": "COMPRESSION",
        "BATCH_MAX_PAYLOAD": "BATCH_MAX_PAYLOADS",
        "STORE_URI": "STORE_URL",
        "bind": "BIND",
    }


@pytest.mark.parametrize(
    "name",
    ["compression", "log_level", "log_format", "s3_addressing", "durability", "client_address"],
)
def test_the_description_of_a_choice_names_every_value(name: str) -> None:
    """An operator would learn the allowed values only from an error."""
    (item,) = (item for item in fields(config.Settings) if item.name == name)
    allowed = problems(**{name.upper(): "?"})[0].split("one of ")[1].split(", ")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith(f"| `{name.upper()}` |"))
    for text in (item.metadata["doc"], row):
        assert [value for value in allowed if not re.search(rf"\b{value}\b", text)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_documented_setting_that_is_not_built_is_refused(name: str, tmp_path: Path) -> None:
    """A user would rely on a feature that is missing."""
    (problem,) = problems(**{name: "x"})
    assert problem.startswith(f"{name}: is set")
    (tmp_path / name.lower()).write_text("x")
    assert problems(CREDENTIALS_DIRECTORY=str(tmp_path)) == [problem]


@pytest.mark.parametrize(("name", "text"), VALUES)
def test_a_documented_value_that_is_not_built_is_refused(name: str, text: str) -> None:
    """The same for one value of a setting that is built."""
    with pytest.raises(SettingsError) as caught:
        config.load({name: text}, key_problems)
    (problem,) = caught.value.problems
    assert problem.startswith(name)


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e-6", "0,5", "$1", "1.", ".5", ""])
def test_a_price_is_a_decimal_number(text: str) -> None:
    """The cost of uploads would be wrong, or no number."""
    if text == "":
        assert config.load({"PUT_PRICE": text}).put_price == 0.000005
    else:
        with pytest.raises(SettingsError, match=r"PUT_PRICE: .* allowed is dollars"):
            config.load({"PUT_PRICE": text})
    assert config.load({"PUT_PRICE": "0"}).put_price == 0
    assert config.load({"PUT_PRICE": "0.0000004"}).put_price == 0.0000004
