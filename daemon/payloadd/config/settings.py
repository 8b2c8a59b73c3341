"""Read the settings; no other module reads the environment.

``load`` parses every field of :class:`Settings` and reports all wrong settings together, so that an
operator does not need a restart for each.
"""

from __future__ import annotations

import os
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, cast

from payloadd.config.contradictions import contradictions_of
from payloadd.config.credential_files import read_credentials
from payloadd.config.daemon_settings import KEY_TEMPLATE, DaemonSettings
from payloadd.config.object_options import SSE_C
from payloadd.config.parsers import pem_file
from payloadd.config.s3_settings import S3Settings
from payloadd.errors import SettingsError
from payloadd.redaction import hide_userinfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, kw_only=True)
class Settings(S3Settings, DaemonSettings):
    """All settings, parsed: sizes in bytes, durations in seconds.

    The fields of the last base class come first, in the help and in the file of the units too.
    """


_NAMES: Final = {
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
    problems += contradictions_of(values, given)
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
        own = [name.lower() for name in names_of(item.name)]
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
    return _NAMES.get(field_name, (field_name.upper(),))
