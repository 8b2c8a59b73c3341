"""The settings of the daemon itself; ``setting.py`` says what a field is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from payloadd.config.envelope import EnvelopeFields, envelope
from payloadd.config.parquet_schema import (
    ParquetSchema,
    object_format,
    parquet_schema,
    sort_columns,
)
from payloadd.config.parsers import (
    Address,
    FileUrl,
    Rate,
    S3Url,
    TrustedPeers,
    address_or_off,
    addresses,
    duration,
    one_of,
    origins,
    pem_file,
    rate,
    size,
    store_url,
    trusted_peers,
    whole,
    words,
)
from payloadd.config.setting import setting
from payloadd.config.shared_journal import journal_url
from payloadd.config.stream_names import streams

LARGEST_OBJECT: Final = 512 * 2**20
"""Bytes; a dead letter is one row, and SQLite's rows have at most 10^9 (sqlite.org/limits.html)."""
KEY_TEMPLATE: Final = "dt={date}/hour={hour}/{id}.ndjson"
"""Folders that Athena, Spark and DuckDB take for partitions (Apache Hive's names)."""


@dataclass(frozen=True, kw_only=True)
class DaemonSettings:
    """The parsed values: sizes in bytes, durations in seconds."""

    max_workers: int = field(metadata=setting("64", whole(1, 1024), "upload workers"))
    max_queue: int = field(metadata=setting("10000", whole(1, 10_000_000), "jobs queued in memory"))
    max_queue_bytes: int = field(
        metadata=setting(
            "64MiB", size(1, 2**40), "payload bytes in memory, queued or being uploaded"
        )
    )
    max_length: int = field(
        metadata=setting(
            "16MiB", size(1, LARGEST_OBJECT), "largest request body, before and after decompression"
        )
    )
    max_payloads: int = field(
        metadata=setting("100000", whole(1, 10_000_000), "payloads of one request")
    )
    max_request_bytes: int = field(
        metadata=setting(
            "256MiB", size(1, 2**40), "bytes of request bodies in memory, all connections together"
        )
    )
    max_connections: int = field(
        metadata=setting("10000", whole(1, 100_000), "client connections at once")
    )
    max_connections_per_client: int | None = field(
        metadata=setting(None, whole(1, 100_000), "client connections at once from one address")
    )
    bind: tuple[Address, ...] = field(
        metadata=setting(
            "127.0.0.1:8080",
            addresses,
            "addresses for POSTs, with commas between them; systemd sockets replace it",
        )
    )
    admin_bind: Address | None = field(
        metadata=setting(
            "127.0.0.1:8081",
            address_or_off,
            "address of the status page, health and metrics, or off",
        )
    )
    store_url: FileUrl | S3Url = field(
        metadata=setting(
            "file://./payloadd-data/objects", store_url, "s3://bucket[/prefix] or file:///path"
        )
    )
    streams: tuple[str, ...] | None = field(
        metadata=setting(None, streams, "names of streams besides the default one (comma list)")
    )
    object_format: Literal["ndjson", "parquet"] = field(
        metadata=setting("ndjson", object_format, "format of objects: ndjson or parquet")
    )
    key_template: str = field(
        metadata=setting(KEY_TEMPLATE, words, "key of an object below the prefix")
    )
    batch_max_payloads: int = field(
        metadata=setting("10000", whole(1, 1_000_000), "payloads per object")
    )
    batch_max_bytes: int = field(
        metadata=setting("8MiB", size(1, LARGEST_OBJECT), "uncompressed bytes per object")
    )
    batch_linger: float = field(
        metadata=setting("1s", duration(0, 3600), "longest that a payload waits for its batch")
    )
    compression: str = field(
        metadata=setting(
            "none", one_of("none", "gzip", "zstd"), "compression of objects: none, gzip or zstd"
        )
    )
    parquet_schema: ParquetSchema | None = field(
        metadata=setting(
            None, parquet_schema, "file with the columns of Parquet, or auto: from each batch"
        )
    )
    parquet_sort_by: tuple[str, ...] | None = field(
        metadata=setting(None, sort_columns, "columns by which the rows of an object are sorted")
    )
    watermark: Literal["on", "off"] = field(
        metadata=setting(
            "off",
            one_of("on", "off"),
            "on: objects below _watermarks say up to when all that was accepted is stored",
        )
    )
    durability: Literal["memory", "store", "disk"] = field(
        metadata=setting(
            "disk",
            one_of("disk", "store", "memory"),
            "disk: 2xx after fsync; store: when the store has it; memory: lost on a crash",
        )
    )
    state_dir: Path = field(
        metadata=setting(
            "./payloadd-data", Path, "folder of the journal; $STATE_DIRECTORY under systemd"
        )
    )
    journal_url: str | None = field(
        repr=False,
        metadata=setting(
            None, journal_url, "postgresql://...: a journal that machines share, not STATE_DIR"
        ),
    )
    journal_max_bytes: int = field(
        metadata=setting("1GiB", size(1, 2**50), "largest journal; beyond it a POST gets 503")
    )
    drain_delay: float = field(
        metadata=setting(
            "0s",
            duration(0, 3600),
            "how long /readyz says 503 after SIGTERM before the listeners close",
        )
    )
    drain_timeout: float = field(
        metadata=setting("30s", duration(0, 86400), "longest wait for uploads after SIGTERM")
    )
    request_timeout: float = field(
        metadata=setting("30s", duration(0.1, 3600), "longest time to receive a whole request")
    )
    keepalive_timeout: float = field(
        metadata=setting("60s", duration(0.1, 86400), "longest time that a connection is idle")
    )
    upload_timeout: float = field(
        metadata=setting("60s", duration(0.1, 3600), "longest time without progress of an upload")
    )
    tls_cert: Path | None = field(
        metadata=setting(None, pem_file, "certificate chain for BIND, PEM")
    )
    tls_key: Path | None = field(metadata=setting(None, pem_file, "key of TLS_CERT, PEM"))
    tls_client_ca: Path | None = field(
        metadata=setting(None, pem_file, "clients need a certificate of these authorities, PEM")
    )
    auth_tokens: Path | None = field(
        metadata=setting(
            None, Path, "file with name:sha256-of-token lines; with it a POST needs a token"
        )
    )
    rate_limit: Rate | None = field(
        metadata=setting(
            None,
            rate,
            "requests of one client, by its name or address, such as 100/s burst 500",
        )
    )
    trusted_proxies: TrustedPeers | None = field(
        metadata=setting(
            None,
            trusted_peers,
            "addresses or networks of proxies that state a client's, or unix",
        )
    )
    client_address: Literal["x-forwarded-for", "forwarded", "proxy"] | None = field(
        metadata=setting(
            None,
            one_of("x-forwarded-for", "forwarded", "proxy"),
            "where TRUSTED_PROXIES state it: x-forwarded-for, forwarded or proxy (PROXY header)",
        )
    )
    cors_origins: tuple[str, ...] | None = field(
        metadata=setting(
            None, origins, "origins of pages from which browsers may post (comma list), or *"
        )
    )
    envelope: EnvelopeFields | None = field(
        metadata=setting(
            None, envelope, "stored around payloads: received_at, client, name, stream, headers:X"
        )
    )
    log_level: Literal["debug", "info", "warning", "error"] = field(
        metadata=setting(
            "info",
            one_of("debug", "info", "warning", "error", warn="warning"),
            "least severe level that is logged: debug, info, warning or error",
        )
    )
    log_format: Literal["auto", "text", "json", "journald"] = field(
        metadata=setting(
            "auto",
            one_of("auto", "text", "json", "journald"),
            "text, json, journald or auto: text on a terminal, journald under systemd, else json",
        )
    )
