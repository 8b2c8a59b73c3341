"""The limit of open files (RLIMIT_NOFILE), compared with what the settings need.

A daemon that runs out of descriptors accepts no connection, opens no segment and writes no
object, and goes wrong in as many places. So the part that clients take is bounded at the start:
what remains below the limit belongs to the journal, the store and the daemon itself.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from payloadd.errors import SettingsError
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from payloadd.config.settings import Settings

log = get_logger(__name__)

ADMIN_CONNECTIONS: Final = 64
"""Connections to the admin address: a scraper, a load balancer's probes and a few people."""

RESERVE: Final = 64
"""Descriptors for everything but connections and uploads: listeners, two epolls and the wake-up
pipe of the event loop, the journal's database with its log, lock, spare space and segments (12),
files that are read back, the helper process and its pipes, look-ups of names, standard streams.
Idle, a daemon has 15 of them."""

_FEWEST_CONNECTIONS: Final = 16


def raise_limit() -> int:
    """Raise the soft limit to what the administrator allows, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft


def within(settings: Settings, limit: int) -> Settings:
    """Return the settings with no more client connections than ``limit`` open files allow.

    Raises SettingsError if hardly any are left.
    """
    if limit == resource.RLIM_INFINITY:
        return settings
    # An upload has a connection to S3, or a file.
    others = ADMIN_CONNECTIONS + settings.max_workers + RESERVE
    most = limit - others
    if settings.max_connections <= most:
        return settings
    if most < _FEWEST_CONNECTIONS:
        least = others + _FEWEST_CONNECTIONS
        problem = (
            f"MAX_WORKERS: {settings.max_workers} needs a limit of {least} open files or more,"
            f" and it is {limit}: raise it (LimitNOFILE= of the unit, ulimit -Hn),"
            " or set a smaller MAX_WORKERS"
        )
        raise SettingsError([problem])
    log.warning(
        "open_files_limited",
        limit=limit,
        max_connections_wanted=settings.max_connections,
        max_connections_used=most,
    )
    return replace(settings, max_connections=most)
