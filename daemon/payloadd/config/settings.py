"""Read the settings; no other module reads the environment.

A setting is a field of :class:`Settings`. Its metadata holds the default as a user would write it,
the parser, and a line of documentation. ``load`` parses every field and reports all wrong settings
together, so that an operator does not need a restart for each.
"""

from __future__ import annotations

import os
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from payloadd.config.contradictions import contradictions_of
from payloadd.config.credential_files import read_credentials
from payloadd.config.not_built import NOT_BUILT
from payloadd.config.object_options import (
    ACLS,
    SSE_C,
    checksum,
    checksum_calculation,
    contradictions,
    encryption,
    header_word,
    metadata,
    tags,
)
from payloadd.config.parsers import (
    Address,
    FileUrl,
    Rate,
    S3Url,
    TrustedPeers,
    address_or_off,
    addresses,
    client_address_header,
    duration,
    endpoint_url,
    one_of,
    origins,
    pem_file,
    price,
    rate,
    region,
    size,
    store_url,
    trusted_peers,
    truth,
    whole,
    words,
)
from payloadd.errors import SettingsError
from payloadd.redaction import hide_userinfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


LARGEST_OBJECT: Final = 512 * 2**20
"""Bytes; a dead letter is one row, and SQLite's rows have at most 10^9 (sqlite.org/limits.html)."""


def _setting(default: str | None, parse: Callable[[str], object], doc: str) -> dict[str, Any]:
    """Return the metadata of a field: default as a user writes it, parser, documentation."""
    return {"default": default, "parse": parse, "doc": doc}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, parsed: sizes in bytes, durations in seconds."""

    max_workers: int = field(metadata=_setting("64", whole(1, 1024), "upload workers"))
    max_queue: int = field(
        metadata=_setting("10000", whole(1, 10_000_000), "jobs queued in memory")
    )
    max_queue_bytes: int = field(
        metadata=_setting(
            "64MiB", size(1, 2**40), "payload bytes in memory, queued or being uploaded"
        )
    )
    max_length: int = field(
        metadata=_setting(
            "16MiB", size(1, LARGEST_OBJECT), "largest request body, before and after decompression"
        )
    )
    max_payloads: int = field(
        metadata=_setting("100000", whole(1, 10_000_000), "payloads of one request")
    )
    max_request_bytes: int = field(
        metadata=_setting(
            "256MiB", size(1, 2**40), "bytes of request bodies in memory, all connections together"
        )
    )
    max_connections: int = field(
        metadata=_setting("1024", whole(1, 100_000), "client connections at once")
    )
    max_connections_per_client: int | None = field(
        metadata=_setting(None, whole(1, 100_000), "client connections at once from one address")
    )
    bind: tuple[Address, ...] = field(
        metadata=_setting(
            "127.0.0.1:8080",
            addresses,
            "addresses for POSTs, with commas between them; systemd sockets replace it",
        )
    )
    admin_bind: Address | None = field(
        metadata=_setting(
            "127.0.0.1:8081", address_or_off, "address of health, readiness and metrics, or off"
        )
    )
    store_url: FileUrl | S3Url = field(
        metadata=_setting(
            "file://./payloadd-data/objects", store_url, "s3://bucket[/prefix] or file:///path"
        )
    )
    key_template: str = field(
        metadata=_setting("{date}/{hour}/{id}.ndjson", words, "key of an object below the prefix")
    )
    batch_max_payloads: int = field(
        metadata=_setting("1", whole(1, 1_000_000), "payloads per object")
    )
    batch_max_bytes: int = field(
        metadata=_setting("8MiB", size(1, LARGEST_OBJECT), "uncompressed bytes per object")
    )
    batch_linger: float = field(
        metadata=_setting("1s", duration(0, 3600), "longest that a payload waits for its batch")
    )
    compression: str = field(
        metadata=_setting(
            "none", one_of("none", "gzip", "zstd"), "compression of objects: none, gzip or zstd"
        )
    )
    durability: Literal["memory", "disk"] = field(
        metadata=_setting(
            "disk", one_of("disk", "memory"), "disk: 2xx after fsync; memory: lost on a crash"
        )
    )
    state_dir: Path = field(
        metadata=_setting(
            "./payloadd-data", Path, "folder of the journal; $STATE_DIRECTORY under systemd"
        )
    )
    journal_max_bytes: int = field(
        metadata=_setting("1GiB", size(1, 2**50), "largest journal; beyond it a POST gets 503")
    )
    drain_timeout: float = field(
        metadata=_setting("30s", duration(0, 86400), "longest wait for uploads after SIGTERM")
    )
    request_timeout: float = field(
        metadata=_setting("30s", duration(0.1, 3600), "longest time to receive a whole request")
    )
    keepalive_timeout: float = field(
        metadata=_setting("60s", duration(0.1, 86400), "longest time that a connection is idle")
    )
    upload_timeout: float = field(
        metadata=_setting("60s", duration(0.1, 3600), "longest time without progress of an upload")
    )
    tls_cert: Path | None = field(
        metadata=_setting(None, pem_file, "certificate chain for BIND, PEM")
    )
    tls_key: Path | None = field(metadata=_setting(None, pem_file, "key of TLS_CERT, PEM"))
    tls_client_ca: Path | None = field(
        metadata=_setting(None, pem_file, "clients need a certificate of these authorities, PEM")
    )
    auth_tokens: Path | None = field(
        metadata=_setting(
            None, Path, "file with name:sha256-of-token lines; with it a POST needs a token"
        )
    )
    rate_limit: Rate | None = field(
        metadata=_setting(
            None,
            rate,
            "requests of one client, by its name or address, such as 100/s burst 500",
        )
    )
    trusted_proxies: TrustedPeers | None = field(
        metadata=_setting(
            None,
            trusted_peers,
            "addresses or networks of proxies that state a client's, or unix",
        )
    )
    client_address: Literal["x-forwarded-for", "forwarded"] | None = field(
        metadata=_setting(
            None,
            client_address_header,
            "where TRUSTED_PROXIES state it: x-forwarded-for or forwarded",
        )
    )
    cors_origins: tuple[str, ...] | None = field(
        metadata=_setting(
            None, origins, "origins of pages from which browsers may post (comma list), or *"
        )
    )
    log_level: Literal["debug", "info", "warning", "error"] = field(
        metadata=_setting(
            "info",
            one_of("debug", "info", "warning", "error"),
            "least severe level that is logged: debug, info, warning or error",
        )
    )
    log_format: Literal["auto", "text", "json"] = field(
        metadata=_setting(
            "auto",
            one_of("auto", "text", "json"),
            "text, json or auto: text on a terminal, JSON lines elsewhere",
        )
    )
    s3_addressing: Literal["auto", "path", "virtual"] = field(
        metadata=_setting(
            "auto",
            one_of("auto", "path", "virtual"),
            "path, virtual or auto: path with AWS_ENDPOINT_URL_S3",
        )
    )
    s3_storage_class: str | None = field(
        metadata=_setting(
            None,
            header_word("a storage class, such as STANDARD_IA", r"[A-Za-z0-9_-]{1,64}"),
            "storage class of objects",
        )
    )
    s3_sse: str | None = field(
        metadata=_setting(None, encryption, "encryption of objects: AES256, aws:kms, aws:kms:dsse")
    )
    s3_sse_kms_key_id: str | None = field(
        metadata=_setting(
            None, header_word("a key's id, ARN or alias"), "KMS key of S3_SSE=aws:kms"
        )
    )
    s3_acl: str | None = field(
        metadata=_setting(None, one_of(*ACLS), "access control list of objects")
    )
    put_price: float = field(metadata=_setting("0.000005", price, "dollars that one PUT costs"))
    s3_tags: str | None = field(metadata=_setting(None, tags, "tags of objects: name=value&..."))
    s3_metadata: tuple[tuple[str, str], ...] | None = field(
        metadata=_setting(None, metadata, "metadata of objects: name=value,...")
    )
    aws_request_checksum_calculation: str | None = field(
        metadata=_setting(
            None, checksum_calculation, "when_required: no checksum unless S3_CHECKSUM names one"
        )
    )
    s3_checksum: str = field(
        metadata=_setting("crc32", checksum, "crc32, crc32c, crc64nvme, sha256 or none")
    )
    s3_if_none_match: Literal["auto", "on", "off"] = field(
        metadata=_setting(
            "auto", one_of("auto", "on", "off"), "let S3 keep an object that exists; auto: repeats"
        )
    )
    s3_expected_bucket_owner: str | None = field(
        metadata=_setting(
            None,
            header_word("the 12 digits of an AWS account", "[0-9]{12}"),
            "account that has to own the bucket",
        )
    )
    s3_request_payer: str | None = field(
        metadata=_setting(None, one_of("requester"), "requester: pay for requests yourself")
    )
    aws_region: str | None = field(metadata=_setting(None, region, "region of the bucket"))
    aws_endpoint_url: str | None = field(
        metadata=_setting(None, endpoint_url, "S3 endpoint other than AWS's")
    )
    aws_access_key_id: str | None = field(
        repr=False, metadata=_setting(None, words, "static access key")
    )
    aws_secret_access_key: str | None = field(
        repr=False, metadata=_setting(None, words, "static secret key")
    )
    aws_session_token: str | None = field(
        repr=False, metadata=_setting(None, words, "session token of temporary keys")
    )
    aws_ca_bundle: Path | None = field(
        metadata=_setting(None, pem_file, "authorities of the certificates of S3, PEM")
    )
    aws_use_fips_endpoint: bool | None = field(
        metadata=_setting(None, truth, "endpoints with FIPS 140 cryptography")
    )
    aws_use_dualstack_endpoint: bool | None = field(
        metadata=_setting(None, truth, "endpoints with IPv4 and IPv6")
    )
    aws_ignore_configured_endpoint_urls: bool | None = field(
        metadata=_setting(None, truth, "ignore AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL")
    )
    aws_profile: str | None = field(metadata=_setting(None, words, "profile of AWS's files"))
    aws_config_file: Path | None = field(
        metadata=_setting(None, Path, "AWS's file with profiles; ~/.aws/config")
    )
    aws_shared_credentials_file: Path | None = field(
        metadata=_setting(None, Path, "AWS's file with keys; ~/.aws/credentials")
    )


ENVIRONMENT_NAMES: Final = {
    "state_dir": ("STATE_DIR", "STATE_DIRECTORY"),
    "aws_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "aws_endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "aws_profile": ("AWS_DEFAULT_PROFILE", "AWS_PROFILE"),
}
"""Names of variables, first one first, of the fields that have another name or several."""


def load(
    environ: Mapping[str, str] | None = None,
    check: Callable[[Mapping[str, Any]], list[str]] | None = None,
) -> Settings:
    """Read the settings from ``environ``, by default the environment of the process.

    A file in ``$CREDENTIALS_DIRECTORY`` (systemd.exec(5), "CREDENTIALS") with the name of a
    setting in lower case takes precedence over the variable. ``check`` gets the parsed values and
    returns further problems. Raises SettingsError with every wrong setting, its value and the
    allowed values.
    """
    environ = os.environ if environ is None else environ
    credentials, problems = _read_credentials(environ)
    values: dict[str, object] = {}
    for item in fields(Settings):
        names = names_of(item.name)
        name, text = _find(names, environ, credentials)
        text = _default(item, values) if text is None else text
        try:
            values[item.name] = None if text is None else item.metadata["parse"](text)
        except ValueError as error:
            shown = repr(hide_userinfo(str(text))) if item.repr else "(not shown)"
            problems.append(f"{name}: {shown} is not allowed; allowed is {error}")
    problems += _not_built(environ, credentials) + contradictions_of(values)
    problems += contradictions(values) + ([] if check is None else check(values))
    if problems:
        raise SettingsError(problems)
    return Settings(**cast("dict[str, Any]", values))


def _default(item: Field[Any], values: Mapping[str, object]) -> str | None:
    """Return the default of a setting; AWS's variable for checksums is parsed before S3_CHECKSUM.

    Source: "Data Integrity Protections for Amazon S3", AWS SDKs and Tools reference guide.
    """
    if item.name == "s3_checksum":
        required = values.get("aws_request_checksum_calculation") == "when_required"
        return "none" if required else "crc32"
    default: str | None = item.metadata["default"]
    return default


def _read_credentials(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the settings of ``$CREDENTIALS_DIRECTORY`` by name in lower case, and problems."""
    names = {name.lower() for name in (*NOT_BUILT, *SSE_C)}
    pem_names = set()
    for item in fields(Settings):
        own = [name.lower() for name in ENVIRONMENT_NAMES.get(item.name, (item.name,))]
        names.update(own)
        if item.metadata["parse"] is pem_file:
            pem_names.update(own)
    return read_credentials(environ.get("CREDENTIALS_DIRECTORY"), names, pem_names)


def reread_credentials(*names: str) -> list[str | None]:
    """Return the texts that files in ``$CREDENTIALS_DIRECTORY`` have now, None for each without.

    ``names`` are the names of the files. Blocks: it reads files.
    """
    texts, _ = read_credentials(os.environ.get("CREDENTIALS_DIRECTORY"), names)
    return [texts.get(name) for name in names]


def _find(
    names: tuple[str, ...], environ: Mapping[str, str], credentials: Mapping[str, str]
) -> tuple[str, str | None]:
    """Return the first name that is set, and its text; the first name and None without one."""
    for name in names:
        if name.lower() in credentials:
            return name, credentials[name.lower()]
    for name in names:
        # An empty value counts as not set: environment files of units often have lines `NAME=`.
        if environ.get(name):
            return name, environ[name]
    return names[0], None


def _not_built(environ: Mapping[str, str], credentials: Mapping[str, str]) -> list[str]:
    refused = {
        name: f"is set, but {feature}: not built yet in this version; unset it"
        for name, feature in NOT_BUILT.items()
    }
    refused |= {name: f"is not allowed; allowed is: {why}" for name, why in SSE_C.items()}
    return [
        f"{name}: {why}"
        for name, why in refused.items()
        if _find((name,), environ, credentials)[1] is not None
    ]


def names_of(field_name: str) -> tuple[str, ...]:
    """Return the names of the variables of a field, the one that wins first."""
    return ENVIRONMENT_NAMES.get(field_name, (field_name.upper(),))
