"""List the settings that differ from their defaults, without secrets."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from payloadd.config.parsers import FileUrl, S3Url, TrustedPeers, size_text
from payloadd.config.settings import Settings, default_text, names_of
from payloadd.escaping import escape_controls
from payloadd.redaction import hide_userinfo

if TYPE_CHECKING:
    from collections.abc import Iterable
    from dataclasses import Field

NOT_SHOWN: Final = "(not shown)"
_SIZE: Final = re.compile(r"[0-9]+[KMG]iB")
_DURATION: Final = re.compile(r"[0-9]+(?:ms|s|m|h)")
"""The defaults of the settings that are sizes and durations."""


def changed_settings(settings: Settings) -> list[tuple[str, str, str]]:
    """Return name, value and default of each setting that has another value than its default.

    A secret value is shown as ``(not shown)``; user names and passwords in URLs are hidden, and
    invisible characters are escaped.
    """
    found = []
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    for item in fields(settings):
        default = default_text(item, values)
        value = getattr(settings, item.name)
        if value == (None if default is None else item.metadata["parse"](default)):
            continue
        shown = _shown(item, value) if item.repr else NOT_SHOWN
        found.append((names_of(item.name)[0], shown, default or "none"))
    return found


def _shown(item: Field[Any], value: object) -> str:
    """Return a value in the unit of its default, if it has one."""
    default = item.metadata["default"] or ""
    if isinstance(value, int) and _SIZE.fullmatch(default):
        return size_text(value)
    if isinstance(value, float) and _DURATION.fullmatch(default):
        return f"{value:g}s"
    return escape_controls(hide_userinfo(value_text(value)))


def store_text(settings: Settings) -> str:
    """Return STORE_URL without a password, for the log and the status page."""
    return escape_controls(hide_userinfo(value_text(settings.store_url)))


def value_text(value: Any) -> str:  # noqa: ANN401 - of any setting
    """Return the value of a setting as text for people."""
    if isinstance(value, S3Url):
        return f"s3://{value.bucket}/{value.prefix}".rstrip("/")
    if isinstance(value, FileUrl):
        return f"file://{value.path}"
    if isinstance(value, TrustedPeers):
        return _joined([*value.networks, *(["unix"] if value.unix else [])])
    if isinstance(value, tuple):
        return _joined(value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _joined(values: Iterable[object]) -> str:
    """Return the items with commas between them; a pair is ``name=value``."""
    return ",".join(
        "=".join(value) if isinstance(value, tuple) else value_text(value) for value in values
    )
