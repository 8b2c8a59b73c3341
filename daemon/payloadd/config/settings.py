"""Read the settings; no other module reads the environment.

A setting is a field of :class:`Settings`; ``daemon_settings.py`` says what its metadata is.
``load`` parses every field and reports all wrong settings together, so that an operator does not
need a restart for each.
"""

from __future__ import annotations

import os
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from payloadd.config.contradictions import contradictions_of
from payloadd.config.credential_files import read_credentials
from payloadd.config.daemon_settings import (
    KEY_TEMPLATE,
    LARGEST_OBJECT,
    DaemonSettings,
    setting,
)
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
from payloadd.config.parsers import endpoint_url, one_of, pem_file, price, region, truth, words
from payloadd.errors import SettingsError
from payloadd.redaction import hide_userinfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


__all__ = [
    "ENVIRONMENT_NAMES",
    "LARGEST_OBJECT",
    "Settings",
    "load",
    "names_of",
    "reread_credentials",
]


_SENT_AS_HEADER: Final = "visible ASCII characters, without spaces"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(DaemonSettings):
    """All settings, parsed: sizes in bytes, durations in seconds."""

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
    given = set()
    for item in fields(Settings):
        names = names_of(item.name)
        name, text = _find(names, environ, credentials)
        if text is None:
            text = default_text(item, values)
        else:
            given.add(item.name)
        try:
            values[item.name] = _parsed(item, text)
        except ValueError as error:
            shown = repr(hide_userinfo(str(text))) if item.repr else "(not shown)"
            problems.append(f"{name}: {shown} is not allowed; allowed is {error}{_hint(text)}")
    for name, why in SSE_C.items():
        if _find((name,), environ, credentials)[1] is not None:
            problems.append(f"{name}: is not allowed; allowed is: {why}")
    problems += contradictions_of(values, given) + contradictions(values)
    problems += [] if check is None else check(values)
    if problems:
        raise SettingsError(problems)
    return Settings(**cast("dict[str, Any]", values))


def for_log(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the defaults, with the LOG_FORMAT that is set if its value is valid.

    Messages about wrong settings are logged with it.
    """
    environ = os.environ if environ is None else environ
    credentials, _ = _read_credentials(environ)
    _, text = _find(names_of("log_format"), environ, credentials)
    try:
        return load({"LOG_FORMAT": text or ""})
    except SettingsError:
        return load({})


def _parsed(item: Field[Any], text: str | None) -> object:
    """Return the value of a setting; spaces around it do not count. Raises ValueError."""
    return None if text is None else item.metadata["parse"](text.strip() or text)


def _hint(text: str | None) -> str:
    """Return a clause about quotes, which some programs that set the environment keep."""
    quoted = text is not None and len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return " (the quotes around it are a part of the value)" if quoted else ""


def default_text(item: Field[Any], values: Mapping[str, object]) -> str | None:
    """Return the default of a setting, which may depend on a setting that was parsed before.

    Source of S3_CHECKSUM: AWS SDKs and Tools reference guide, "Data Integrity Protections".
    """
    if item.name == "key_template":
        suffix = ".ndjson" if values.get("object_format") == "parquet" else ""
        return ("{stream}/" if values.get("streams") else "") + KEY_TEMPLATE.removesuffix(suffix)
    if item.name == "s3_checksum":
        required = values.get("aws_request_checksum_calculation") == "when_required"
        return "none" if required else "crc32"
    default: str | None = item.metadata["default"]
    return default


def _read_credentials(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the settings of ``$CREDENTIALS_DIRECTORY`` by name in lower case, and problems."""
    names = {name.lower() for name in SSE_C}
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


def names_of(field_name: str) -> tuple[str, ...]:
    """Return the names of the variables of a field, the one that wins first."""
    return ENVIRONMENT_NAMES.get(field_name, (field_name.upper(),))
