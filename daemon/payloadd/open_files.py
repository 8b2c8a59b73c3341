"""Compare the limit of open files (RLIMIT_NOFILE) with the needs of the settings.

Without free descriptors the daemon can accept no connection, open no segment and write no object.
So the number of client connections is bounded at the start; the descriptors that remain below the
limit are for the journal, the store and the daemon itself.
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

ADMIN_CONNECTIONS: Final = 128
"""Connections to the admin address: a metrics scraper, health probes and a hundred status pages. A
further one would close an idle one, and a page that polls over a new connection each time costs
more than the poll."""

OTHER_DESCRIPTORS: Final = 64
"""Descriptors besides connections and uploads: listeners; the epolls of the event loop, the ways in
and the uploads; sockets and eventfds that wake the event loop, a few of them for the journal's
thread; the journal's database with its log, lock, disk reserve and segments (12), segments that
are read back, the decoder process and its pipes, DNS lookups, standard streams. An idle daemon has
22 of them open."""

_FEWEST_CONNECTIONS: Final = 16


def raise_limit() -> int:
    """Raise the soft limit to the hard limit if possible; returns the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft


def limit_connections(settings: Settings, limit: int) -> Settings:
    """Return the settings with no more client connections than ``limit`` open files allow.

    Raises SettingsError if fewer than 16 connections remain.
    """
    if limit == resource.RLIM_INFINITY:
        return settings
    # An upload needs one descriptor: a connection to S3, or a file.
    others = ADMIN_CONNECTIONS + settings.max_workers + OTHER_DESCRIPTORS
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
