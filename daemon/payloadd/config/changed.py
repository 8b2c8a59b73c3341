"""List the settings that differ from their defaults, without secrets."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from payloadd.config.parsers import FileUrl, S3Url
from payloadd.config.settings import ENVIRONMENT_NAMES, Settings
from payloadd.redaction import hide_userinfo

if TYPE_CHECKING:
    from collections.abc import Sequence


def changed_settings(settings: Settings) -> list[tuple[str, str, str]]:
    """Return name, value and default of each setting that has another value than its default.

    Sizes are in bytes, durations in seconds, as the daemon uses them. A secret value is shown as
    ``(not shown)``; user names and passwords in URLs are hidden.
    """
    found = []
    for item in fields(settings):
        default: str | None = item.metadata["default"]
        value = getattr(settings, item.name)
        if value == (None if default is None else item.metadata["parse"](default)):
            continue
        name = ENVIRONMENT_NAMES.get(item.name, (item.name.upper(),))[0]
        shown = hide_userinfo(value_text(value)) if item.repr else "(not shown)"
        found.append((name, shown, default or "none"))
    return found


def value_text(value: Any) -> str:  # noqa: ANN401 - of any setting
    """Return the value of a setting as text for people."""
    if isinstance(value, S3Url):
        return f"s3://{value.bucket}/{value.prefix}".rstrip("/")
    if isinstance(value, FileUrl):
        return f"file://{value.path}"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (tuple, frozenset)):
        return _joined(value)
    return "none" if value is None else str(value)


def _joined(values: Sequence[object] | frozenset[object]) -> str:
    return ",".join(map(value_text, values))
