"""The tables of the journal in PostgreSQL, their version, and how they are made.

README.md says what each table is for. Functions raise psycopg.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import psycopg
from psycopg import sql

from payloadd.errors import StartError

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

SCHEMA: Final = "payloadd"
VERSION: Final = 1
PARTS: Final = 3
"""Tables that the rows of one lane rotate through: one is filled while another is emptied."""
KEY_TABLES: Final = 5
"""Tables that the Idempotency-Keys rotate through; see ``keys.py``."""
FENCED: Final = "PLD01"
"""The SQLSTATE of a transaction whose lane another process has taken."""

_SMALL_AND_HOT: Final = (
    "fillfactor = 50, autovacuum_vacuum_threshold = 50, autovacuum_vacuum_scale_factor = 0"
)
"""For tables of few rows that are updated all the time: new versions fit into the same page."""

_TABLES: Final = f"""
    CREATE SCHEMA IF NOT EXISTS payloadd;

    CREATE TABLE payloadd.meta (version int NOT NULL, created timestamptz NOT NULL DEFAULT now());

    CREATE TABLE payloadd.streams (number int PRIMARY KEY, name text NOT NULL UNIQUE);

    CREATE TABLE payloadd.lanes (
        lane int PRIMARY KEY,
        epoch bigint NOT NULL,
        beat bigint NOT NULL,
        owner text,
        backend int,
        backend_start timestamptz,
        expires timestamptz,
        empty boolean NOT NULL,
        until jsonb NOT NULL DEFAULT '{{}}',
        marked text NOT NULL DEFAULT 'open'
    ) WITH ({_SMALL_AND_HOT});

    CREATE TABLE payloadd.checkpoints (lane int PRIMARY KEY, state jsonb NOT NULL)
    WITH ({_SMALL_AND_HOT});

    CREATE TABLE payloadd.layouts (
        lane int NOT NULL,
        stream int NOT NULL,
        first bigint NOT NULL,
        layout jsonb NOT NULL,
        PRIMARY KEY (lane, stream, first)
    );

    CREATE TABLE payloadd.batches (
        lane int NOT NULL,
        stream int NOT NULL,
        first bigint NOT NULL,
        last bigint NOT NULL,
        jobs int NOT NULL,
        payloads bigint NOT NULL,
        size bigint NOT NULL,
        accepted bigint NOT NULL,
        key text NOT NULL,
        format text NOT NULL,
        encoder text,
        crc bigint,
        body bytea,
        PRIMARY KEY (lane, stream, first)
    ) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
    ALTER TABLE payloadd.batches ALTER COLUMN body SET STORAGE EXTERNAL;

    CREATE TABLE payloadd.dead (
        lane int NOT NULL,
        stream int NOT NULL,
        first bigint NOT NULL,
        last bigint NOT NULL,
        jobs int NOT NULL,
        payloads bigint NOT NULL,
        size bigint NOT NULL,
        key text NOT NULL,
        format text NOT NULL,
        id uuid NOT NULL,
        at bigint NOT NULL,
        code text NOT NULL,
        reason text NOT NULL,
        retry boolean NOT NULL DEFAULT false,
        crc bigint NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (lane, stream, first)
    );
    CREATE INDEX dead_id ON payloadd.dead (id);
    CREATE INDEX dead_retry ON payloadd.dead (lane) WHERE retry;
    ALTER TABLE payloadd.dead ALTER COLUMN body SET STORAGE EXTERNAL;

    CREATE TABLE payloadd.key_tables (number int PRIMARY KEY, period bigint NOT NULL);

    CREATE FUNCTION payloadd.fence(lanes int[], epochs bigint[]) RETURNS void
    LANGUAGE plpgsql AS $$
    DECLARE
        found_rows int;
    BEGIN
        PERFORM FROM payloadd.lanes l JOIN unnest(lanes, epochs) AS held(lane, epoch)
        ON l.lane = held.lane AND l.epoch = held.epoch ORDER BY l.lane FOR SHARE OF l;
        GET DIAGNOSTICS found_rows = ROW_COUNT;
        IF found_rows <> cardinality(lanes) THEN
            RAISE EXCEPTION 'another process has taken a lane of this one'
            USING ERRCODE = '{FENCED}';
        END IF;
    END $$;

    CREATE FUNCTION payloadd.fence(held_lane int, held_epoch bigint) RETURNS boolean
    LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM FROM payloadd.lanes WHERE lane = held_lane AND epoch = held_epoch FOR SHARE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'another process has taken a lane of this one'
            USING ERRCODE = '{FENCED}';
        END IF;
        RETURN true;
    END $$;

    INSERT INTO payloadd.streams VALUES (0, 'default');
"""
_KEY_TABLE: Final = """
    CREATE TABLE payloadd.keys_{number} (
        key bytea PRIMARY KEY,
        id uuid NOT NULL,
        payloads bigint NOT NULL,
        expires bigint NOT NULL,
        marks bytea NOT NULL
    );
    INSERT INTO payloadd.key_tables VALUES ({number}, -1);
"""
_ROWS: Final = """
    CREATE TABLE {table} (
        stream int NOT NULL,
        last bigint NOT NULL,
        jobs int NOT NULL,
        payloads bigint NOT NULL,
        size bigint NOT NULL,
        crc bigint NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (stream, last)
    ) WITH (toast_tuple_target = 8160, autovacuum_enabled = off);
    ALTER TABLE {table} ALTER COLUMN body SET STORAGE EXTERNAL;
"""
# Rows are inserted and read, and never deleted: TRUNCATE empties a whole table.
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('payloadd.schema', 0))"


def rows_table(lane: int, part: int) -> str:
    """Return the name of a table with rows of a lane."""
    return f"payloadd.rows_{lane}_{part}"


def statement(text: str) -> sql.SQL:
    """Return SQL that was put together from constants of this package and from numbers."""
    return sql.SQL(text)


def truncate(cursor: Cursor[Any], table: str) -> None:
    """Empty a table. Raises LockNotAvailable at once while another session reads it.

    To wait would stop all that come behind: readers wait for a lock that waits.
    """
    cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE NOWAIT".encode())
    cursor.execute(f"TRUNCATE {table}".encode())


def version_of(connection: Connection[Any]) -> int | None:
    """Return the version of the schema; None where there is none."""
    found = connection.execute("SELECT to_regclass('payloadd.meta')").fetchone()
    if found is None or found[0] is None:
        return None
    row = connection.execute("SELECT version FROM payloadd.meta").fetchone()
    return None if row is None else int(row[0])


def name_of(connection: Connection[Any]) -> str:
    """Return eight hex digits that tell this journal from all others."""
    row = connection.execute(
        "SELECT left(md5((extract(epoch FROM created) * 1000000)::bigint::text), 8)"
        " FROM payloadd.meta"
    ).fetchone()
    return "" if row is None else str(row[0])


def check_version(version: int | None) -> None:
    """Raise StartError if this version of payloadd cannot use the schema."""
    if version is not None and version > VERSION:
        raise StartError(
            f"the journal was made by a newer payloadd (schema version {version},"
            f" this one knows {VERSION})"
        )


def make(connection: Connection[Any]) -> bool:
    """Make the schema, or bring it up to this version; return whether anything was made.

    Raises StartError where a newer version has made it, or where the role may not make it.
    """
    version = version_of(connection)
    check_version(version)
    if version == VERSION:
        return False
    try:
        with connection.transaction():
            connection.execute(_LOCK)
            if version_of(connection) is not None:
                return False  # another process has made it meanwhile
            connection.execute(statement(_TABLES))
            for number in range(KEY_TABLES):
                connection.execute(statement(_KEY_TABLE.format(number=number)))
            connection.execute("INSERT INTO payloadd.meta (version) VALUES (%s)", (VERSION,))
    except psycopg.errors.InsufficientPrivilege as error:
        raise StartError(
            f"the database has no journal, and the role may not make one: {first_line(error)};"
            " run `payloadd check --create` with a role that may (CREATE on the database)"
        ) from None
    return True


def make_lane(connection: Connection[Any]) -> int:
    """Make a new lane without an owner, with its tables; return its number."""
    try:
        with connection.transaction():
            connection.execute(_LOCK)
            found = connection.execute("SELECT coalesce(max(lane), 0) + 1 FROM payloadd.lanes")
            (lane,) = cast("tuple[int]", found.fetchone())
            for part in range(PARTS):
                connection.execute(statement(_ROWS.format(table=rows_table(lane, part))))
            connection.execute(
                "INSERT INTO payloadd.lanes (lane, epoch, beat, empty) VALUES (%s, 0, 0, true)",
                (lane,),
            )
            connection.execute(
                "INSERT INTO payloadd.checkpoints (lane, state) VALUES (%s, '{}')", (lane,)
            )
    except psycopg.errors.InsufficientPrivilege as error:
        raise StartError(
            f"no lane of the journal is free, and the role may not make one: {first_line(error)};"
            " run `payloadd check --create` with a role that may (CREATE on the schema payloadd)"
        ) from None
    return lane


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without the lines of context."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
