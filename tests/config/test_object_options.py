"""The settings that S3 gets with each object."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.config import settings as config
from payloadd.config.object_options import tags
from payloadd.errors import SettingsError


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("S3_STORAGE_CLASS", "STANDARD_IA", "STANDARD_IA"),
        ("S3_SSE", "AES256", "AES256"),
        ("S3_SSE", "aws:kms:dsse", "aws:kms:dsse"),
        ("S3_ACL", "bucket-owner-full-control", "bucket-owner-full-control"),
        ("S3_TAGS", "team=a b&cost center=42", "team=a%20b&cost%20center=42"),
        ("S3_TAGS", "a=1,b=", "a=1&b="),
        ("S3_TAGS", "größe=%26%2C", "gr%C3%B6%C3%9Fe=%26%2C"),
        ("S3_METADATA", "Team=a b,env=x%2Cy%3D", (("team", "a b"), ("env", "x,y="))),
        ("S3_CHECKSUM", "sha256", "sha256"),
        ("S3_CHECKSUM", "crc64nvme", "crc64nvme"),
        ("S3_IF_NONE_MATCH", "on", "on"),
        ("S3_EXPECTED_BUCKET_OWNER", "123456789012", "123456789012"),
        ("S3_REQUEST_PAYER", "requester", "requester"),
        ("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED", "when_required"),
    ],
)
def test_an_option_is_read(name: str, text: str, value: object) -> None:
    """An operator could not set an option, or S3 would get another value."""
    assert getattr(config.load({name: text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("S3_STORAGE_CLASS", "STANDARD IA", "a storage class"),
        ("S3_SSE", "AES-256", "one of AES256"),
        ("S3_SSE", "SSE-C", "SSE-C is not supported: each reader would need the key"),
        ("S3_SSE", "customer", "SSE-C is not supported"),
        ("S3_SSE_KMS_KEY_ID", "a key", "a key's id"),
        ("S3_ACL", "public", "public-read"),
        ("S3_TAGS", "team", "name=value[&name=value...]; , & = %"),
        ("S3_METADATA", "team", "name=value[,name=value...]; , & = %"),
        ("S3_TAGS", "=x", "name=value"),
        ("S3_TAGS", "a=\udcff", "name=value"),
        ("S3_TAGS", "a=%0a", "at most 10 tags"),
        ("S3_TAGS", "a=1,a=2", "each name once"),
        ("S3_TAGS", "aws:x=1", "not beginning with aws:"),
        ("S3_TAGS", ",".join(f"t{n}=1" for n in range(11)), "at most 10 tags"),
        ("S3_TAGS", "x" * 129 + "=1", "128"),
        ("S3_TAGS", "x=" + "1" * 257, "256"),
        ("S3_METADATA", "payloads=1", "not payloads"),
        ("S3_METADATA", "a b=1", "names of letters"),
        ("S3_METADATA", "a=1,A=2", "each once"),
        ("S3_METADATA", "a=é", "printable ASCII"),
        ("S3_METADATA", "a=x%0D%0Ay", "printable ASCII"),
        ("S3_METADATA", "a=x  y", "printable ASCII"),
        ("S3_METADATA", "a=" + "x" * 2000, "1848 bytes"),
        ("S3_CHECKSUM", "md5", "crc32, crc32c, crc64nvme, sha256, none"),
        ("S3_IF_NONE_MATCH", "yes", "auto, on, off"),
        ("S3_EXPECTED_BUCKET_OWNER", "12345", "12 digits"),
        ("S3_REQUEST_PAYER", "me", "requester"),
        ("AWS_REQUEST_CHECKSUM_CALCULATION", "never", "when_supported or when_required"),
        ("S3_SSE_CUSTOMER_KEY", "secret", "SSE-C is not supported"),
    ],
)
def test_a_value_that_s3_would_refuse_is_a_wrong_setting(
    name: str, text: str, allowed: str
) -> None:
    """Every object would be refused, instead of the start."""
    with pytest.raises(SettingsError) as caught:
        config.load({name: text})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: ")
    assert allowed in problem
    assert "secret" not in problem


@pytest.mark.parametrize(
    ("sse", "reason"),
    [("", "is set, but S3_SSE is not;"), ("AES256", "is set with S3_SSE=AES256;")],
)
def test_a_kms_key_needs_kms(sse: str, reason: str) -> None:
    """The key would be ignored, or every object refused."""
    with pytest.raises(SettingsError, match=f"S3_SSE_KMS_KEY_ID: {reason}"):
        config.load({"S3_SSE": sse, "S3_SSE_KMS_KEY_ID": "k"})
    config.load({"S3_SSE": "aws:kms", "S3_SSE_KMS_KEY_ID": "k"})


@pytest.mark.parametrize(
    ("environ", "checksum"),
    [
        ({}, "crc32"),
        ({"AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported"}, "crc32"),
        ({"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}, "none"),
        ({"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "S3_CHECKSUM": "crc32"}, "crc32"),
    ],
)
def test_awss_variable_leaves_the_checksum_out(environ: dict[str, str], checksum: str) -> None:
    """A store that refuses checksum headers could not be used as with every other AWS tool."""
    assert config.load(environ).s3_checksum == checksum


def test_a_checksum_of_a_package_that_is_missing_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first upload would fail with a traceback."""
    monkeypatch.setattr("payloadd.config.object_options.find_spec", lambda _: None)
    config.load({"S3_CHECKSUM": "sha256"})
    with pytest.raises(SettingsError, match=r"crc64nvme needs the package awscrt.*payloadd\[crt\]"):
        config.load({"S3_CHECKSUM": "crc64nvme"})


@given(
    st.dictionaries(
        st.from_regex(r"[a-zA-Z][a-zA-Z0-9 +=._:/@-]{0,9}", fullmatch=True).map(str.strip),
        st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=9).map(str.strip),
        min_size=1,
        max_size=5,
    )
)
def test_tags_reach_s3_as_they_were_written(wanted: dict[str, str]) -> None:
    """A tag would have another value than its operator wrote."""
    text = "&".join(
        "=".join(
            part.replace("%", "%25").replace("&", "%26").replace(",", "%2C").replace("=", "%3D")
            for part in pair
        )
        for pair in wanted.items()
    )
    assert dict(parse_qsl(tags(text), keep_blank_values=True)) == wanted
