"""The settings of S3 and of AWS's tools; ``setting.py`` says what a field is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from payloadd.config.object_options import (
    ACLS,
    checksum,
    checksum_calculation,
    encryption,
    header_word,
    metadata,
    tags,
)
from payloadd.config.parsers import endpoint_url, one_of, pem_file, price, region, truth, words
from payloadd.config.setting import setting

_SENT_AS_HEADER: Final = "visible ASCII characters, without spaces"


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    """The parsed values."""

    s3_addressing: Literal["auto", "path", "virtual"] = field(
        metadata=setting(
            "auto",
            one_of("auto", "path", "virtual"),
            "path, virtual or auto: path with AWS_ENDPOINT_URL_S3",
        )
    )
    s3_storage_class: str | None = field(
        metadata=setting(
            None,
            header_word("a storage class, such as STANDARD_IA", r"[A-Za-z0-9_-]{1,64}"),
            "storage class of objects",
        )
    )
    s3_sse: str | None = field(
        metadata=setting(None, encryption, "encryption of objects: AES256, aws:kms, aws:kms:dsse")
    )
    s3_sse_kms_key_id: str | None = field(
        metadata=setting(None, header_word("a key's id, ARN or alias"), "KMS key of S3_SSE=aws:kms")
    )
    s3_acl: str | None = field(
        metadata=setting(None, one_of(*ACLS), "access control list of objects")
    )
    put_price: float = field(metadata=setting("0.000005", price, "dollars that one PUT costs"))
    s3_tags: str | None = field(metadata=setting(None, tags, "tags of objects: name=value&..."))
    s3_metadata: tuple[tuple[str, str], ...] | None = field(
        metadata=setting(None, metadata, "metadata of objects: name=value,...")
    )
    aws_request_checksum_calculation: str | None = field(
        metadata=setting(
            None, checksum_calculation, "when_required: no checksum unless S3_CHECKSUM names one"
        )
    )
    s3_checksum: str = field(
        metadata=setting("crc32", checksum, "crc32, crc32c, crc64nvme, sha256 or none")
    )
    s3_content_encoding: Literal["on", "off"] = field(
        metadata=setting(
            "off",
            one_of("on", "off"),
            "on: compressed objects have a Content-Encoding, so that HTTP clients decompress them",
        )
    )
    s3_if_none_match: Literal["auto", "on", "off"] = field(
        metadata=setting(
            "auto", one_of("auto", "on", "off"), "let S3 keep an object that exists; auto: repeats"
        )
    )
    s3_expected_bucket_owner: str | None = field(
        metadata=setting(
            None,
            header_word("the 12 digits of an AWS account", "[0-9]{12}"),
            "account that has to own the bucket",
        )
    )
    s3_request_payer: str | None = field(
        metadata=setting(None, one_of("requester"), "requester: pay for requests yourself")
    )
    aws_region: str | None = field(metadata=setting(None, region, "region of the bucket"))
    aws_endpoint_url: str | None = field(
        metadata=setting(None, endpoint_url, "S3 endpoint other than AWS's")
    )
    aws_access_key_id: str | None = field(
        repr=False,
        metadata=setting(None, header_word(_SENT_AS_HEADER, "[!-~]+"), "static access key"),
    )
    aws_secret_access_key: str | None = field(
        repr=False, metadata=setting(None, words, "static secret key")
    )
    aws_session_token: str | None = field(
        repr=False,
        metadata=setting(
            None, header_word(_SENT_AS_HEADER, "[!-~]+"), "session token of temporary keys"
        ),
    )
    aws_ca_bundle: Path | None = field(
        metadata=setting(None, pem_file, "authorities of the certificates of S3, PEM")
    )
    aws_use_fips_endpoint: bool | None = field(
        metadata=setting(None, truth, "endpoints with FIPS 140 cryptography")
    )
    aws_use_dualstack_endpoint: bool | None = field(
        metadata=setting(None, truth, "endpoints with IPv4 and IPv6")
    )
    aws_ignore_configured_endpoint_urls: bool | None = field(
        metadata=setting(None, truth, "ignore AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL")
    )
    aws_profile: str | None = field(
        metadata=setting(None, words, "profile of AWS's files; AWS_PROFILE does the same")
    )
    aws_config_file: Path | None = field(
        metadata=setting(None, Path, "AWS's file with profiles; ~/.aws/config")
    )
    aws_shared_credentials_file: Path | None = field(
        metadata=setting(None, Path, "AWS's file with keys; ~/.aws/credentials")
    )
