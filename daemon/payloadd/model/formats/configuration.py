"""The options of formats, for the time in which the daemon runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from payloadd.errors import OperatorStoreError, StartError
from payloadd.model.formats import PARQUET

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from payloadd.config.settings import Settings


@asynccontextmanager
async def open_formats(settings: Settings) -> AsyncIterator[None]:
    """Use the options of the settings for the time of the block. Raises StartError."""
    PARQUET.configure(settings)
    try:
        if settings.object_format == PARQUET.name:
            try:
                await trio.to_thread.run_sync(PARQUET.start, abandon_on_cancel=True)
            except OperatorStoreError as error:
                raise StartError(f"OBJECT_FORMAT=parquet: {error}") from error
        yield
    finally:
        PARQUET.configure(None)
