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
from payloadd.config.parquet_schema import ParquetSchema
from payloadd.config.parsers import FileUrl, Rate, S3Url, TcpAddress, UnixAddress, address
from payloadd.errors import SettingsError
from payloadd.model.keys import key_problems
from tests.config.wrong_settings import problems


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
        ("MAX_LENGTH", "10M", "max_length", 10 * 2**20),
        ("MAX_LENGTH", "10MB", "max_length", 10**7),
        ("MAX_LENGTH", "10mb", "max_length", 10**7),
        ("MAX_LENGTH", "10Mi", "max_length", 10 * 2**20),
        ("MAX_LENGTH", "512k", "max_length", 512 * 2**10),
        ("MAX_LENGTH", "512KB", "max_length", 512_000),
        ("MAX_LENGTH", "1.5MiB", "max_length", 3 * 2**19),
        ("JOURNAL_MAX_BYTES", "2G", "journal_max_bytes", 2**31),
        ("JOURNAL_MAX_BYTES", "1TB", "journal_max_bytes", 10**12),
        ("JOURNAL_MAX_BYTES", "1 TiB", "journal_max_bytes", 2**40),
        ("DRAIN_DELAY", "0s", "drain_delay", 0.0),
        ("DRAIN_DELAY", "0", "drain_delay", 0.0),
        ("DRAIN_TIMEOUT", "45", "drain_timeout", 45.0),
        ("DRAIN_TIMEOUT", "1.5", "drain_timeout", 1.5),
        ("DRAIN_TIMEOUT", "1m30s", "drain_timeout", 90.0),
        ("DRAIN_TIMEOUT", "5 min 20 s", "drain_timeout", 320.0),
        ("DRAIN_TIMEOUT", "10 Seconds", "drain_timeout", 10.0),
        ("DRAIN_TIMEOUT", " 30s ", "drain_timeout", 30.0),
        ("MAX_WORKERS", "8\r", "max_workers", 8),
        ("COMPRESSION", "ZSTD", "compression", "zstd"),
        ("COMPRESSION", " gzip", "compression", "gzip"),
        ("LOG_LEVEL", "INFO", "log_level", "info"),
        ("LOG_LEVEL", "WARN", "log_level", "warning"),
        ("LOG_FORMAT", "JSON", "log_format", "json"),
        ("DURABILITY", "Disk", "durability", "disk"),
        ("CLIENT_ADDRESS", "X-Forwarded-For", "client_address", "x-forwarded-for"),
        ("S3_ACL", "Private", "s3_acl", "private"),
        ("S3_SSE", "aes256", "s3_sse", "AES256"),
        ("S3_CHECKSUM", "SHA256", "s3_checksum", "sha256"),
        ("AWS_USE_FIPS_ENDPOINT", " true", "aws_use_fips_endpoint", True),
        ("ADMIN_BIND", "OFF", "admin_bind", None),
        ("STORE_URL", "S3://bucket/Prefix ", "store_url", S3Url("bucket", "Prefix")),
        ("STORE_URL", "s3://my_bucket.x", "store_url", S3Url("my_bucket.x", "")),
        ("RATE_LIMIT", "60/min", "rate_limit", Rate(1.0, 1, "60/min")),
        ("RATE_LIMIT", "100 / s, burst 5", "rate_limit", Rate(100.0, 5, "100 / s, burst 5")),
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
        ("WATERMARK", "on", "watermark", "on"),
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
    environ = {name: text, **({"TRUSTED_PROXIES": "unix"} if name == "CLIENT_ADDRESS" else {})}
    assert getattr(config.load(environ), field) == value


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
        ("WATERMARK", "1m", "on, off"),
        ("MAX_LENGTH", "1TB", "from 1B to 512MiB"),
        ("MAX_LENGTH", "1PB", "KiB"),
        ("MAX_LENGTH", "1 0M", "a size"),
        ("MAX_LENGTH", "-1", "size"),
        ("UPLOAD_TIMEOUT", "30x", "ms, s, m or h"),
        ("UPLOAD_TIMEOUT", "1m30", "a number alone is seconds"),
        ("UPLOAD_TIMEOUT", "'30s'", "(the quotes around it are a part of the value)"),
        ("UPLOAD_TIMEOUT", "0s", "0.1s to 3600s"),
        ("BIND", "8080", "host:port"),
        ("BIND", "127.0.0.1:70000", "0 to 65535"),
        ("BIND", "::1:80", "[v6]:port"),
        ("BIND", "unix:relative", "unix:/path"),
        ("BIND", "8080", "in '8080' the host is missing: 127.0.0.1:8080 is open to this machine"),
        ("BIND", ":8080", "the host is missing: 127.0.0.1:8080"),
        ("BIND", "*:8080", "0.0.0.0:8080 and [::]:8080 to others too"),
        ("BIND", "127.0.0.1", "in '127.0.0.1' the port is missing"),
        ("BIND", "127.0.0.1:", "'' is no port"),
        ("BIND", f"127.0.0.1:{'1' * 5000}", "1' is no port"),
        ("BIND", "[::1]", "in '[::1]' the port is missing"),
        ("BIND", ":", "in ':' the port is missing"),
        ("BIND", "127.0.0.1:70000", "'70000' is no port"),
        ("BIND", "127.0.0.256:80", "'127.0.0.256' is neither the name of a host nor an IP address"),
        ("BIND", "[::g]:80", "'[::g]' is neither"),
        ("BIND", "[1.2.3.4]:80", "'[1.2.3.4]' is neither"),
        ("BIND", "a b:80", "'a b' is neither"),
        ("BIND", "::1:80", "the brackets of an IPv6 address are missing"),
        ("BIND", "/run/p.sock", "with unix: in front of it"),
        ("BIND", "http://h:80", "neither a scheme such as http:// nor a user"),
        ("BIND", "h:80,", "there is nothing between two commas, or at an end"),
        ("ADMIN_BIND", "nowhere", "off, or host:port"),
        ("STORE_URL", "s3://", "s3://bucket"),
        ("STORE_URL", "s3://Bad_Bucket", "s3://bucket"),
        ("STORE_URL", "s3://My_Bucket/x", "'My_Bucket' cannot be used: upper-case letters (M, B)"),
        ("STORE_URL", "s3:///x", "the name of the bucket is missing"),
        ("STORE_URL", "s3://a b/x", "' ' is not allowed in it"),
        ("STORE_URL", "s3://ab", "it has 2 characters (a bucket's name has 3 to 63 characters"),
        ("STORE_URL", f"s3://{'a' * 64}", "it has 64 characters"),
        ("STORE_URL", "s3://-ab.", "it begins with '-', it ends with '.'"),
        ("STORE_URL", "s3://a..b", "it has two periods in a row"),
        ("STORE_URL", "s3://192.168.5.4", "it looks like an IP address"),
        ("STORE_URL", "s3://amzn-s3-demo-bucket", "'amzn-s3-demo-' is reserved"),
        ("STORE_URL", "s3://bucket?x", "'?' is not allowed in it"),
        ("STORE_URL", "s3://bucket/a\nb", "it has a control character"),
        ("STORE_URL", "s3://bucket/\udcff", "the prefix is not UTF-8"),
        ("STORE_URL", "https://bucket.s3.amazonaws.com", "belongs in AWS_ENDPOINT_URL_S3"),
        ("STORE_URL", "gs://bucket", "begins with neither s3:// nor file://"),
        ("STORE_URL", "file://host:1/x", "the path must be one of this machine"),
        ("STORE_URL", "s3://b1/x", "3 to 63 characters"),
        ("STORE_URL", "/var/lib/objects", "file:///path"),
        ("COMPRESSION", "lz4", "none, gzip, zstd"),
        ("LOG_LEVEL", "verbose", "debug, info, warning, error"),
        ("KEY_TEMPLATE", " ", "not empty"),
        ("AWS_ENDPOINT_URL_S3", "minio:9000", "it does not begin with http:// or https://"),
        ("AWS_ENDPOINT_URL_S3", "http://", "the host is missing"),
        ("AWS_ENDPOINT_URL_S3", "http://h:0", "0 is no port of a server"),
        ("AWS_ENDPOINT_URL_S3", "http://h#x", "a fragment does not belong in it"),
        ("AWS_ENDPOINT_URL_S3", "http://a..b", "a part of the host is empty"),
        ("AWS_ENDPOINT_URL_S3", "http://h\xfc", "characters that no URL has"),
        ("AWS_ENDPOINT_URL_S3", "http://[::1", "http://host"),
        ("AWS_ENDPOINT_URL_S3", "http://h:abc", "http://host"),
        ("AWS_ENDPOINT_URL_S3", f"http://{'a' * 64}.x", "http://host"),
        ("AWS_ENDPOINT_URL_S3", "http://h?x=1", "without user"),
        ("AWS_REGION", "a b", "a region's name"),
        ("STORE_URL", "file:///x%00", "file:///path"),
        ("STORE_URL", "s3://arn:aws:s3:us-west-2:1:accesspoint/x", "that of an access point"),
        ("AWS_USE_FIPS_ENDPOINT", "yes", "one of true, false"),
        ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "1", "one of true, false"),
        ("RATE_LIMIT", "100", "100/s burst 500"),
        ("RATE_LIMIT", "100/fortnight", "100/s burst 500"),
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


@pytest.mark.parametrize(
    "environ",
    [
        {"STORE_URL": "s3://key:hunter2@bucket/x"},
        {"STORE_URL": "s3://key:hunter2/x@bucket/x"},
        {"BIND": "user:hunter2@host:80"},
        {"AWS_ENDPOINT_URL_S3": "http://user:hunter2@minio:9000"},
        {"STORE_URL": "file://user:hunter2@host/x"},
    ],
)
def test_no_reason_repeats_a_password(environ: dict[str, str]) -> None:
    """The reason beside a value whose password is hidden would show the password."""
    (problem,) = problems(**environ)
    assert "hunter2" not in problem


@pytest.mark.parametrize(("text", "found"), [("json", "json"), ("xml", "auto"), ("", "auto")])
def test_messages_about_wrong_settings_have_the_format_of_the_log(text: str, found: str) -> None:
    """A wrong LOG_FORMAT would hide all messages."""
    assert config.for_log({"LOG_FORMAT": text, "MAX_WORKERS": "x"}).log_format == found


def test_the_format_of_these_messages_may_be_a_credential(tmp_path: Path) -> None:
    """They would have another format than all other lines of the log."""
    (tmp_path / "log_format").write_text("json\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "LOG_FORMAT": "text", "MAX_WORKERS": "x"}
    assert config.for_log(environ).log_format == "json"


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
