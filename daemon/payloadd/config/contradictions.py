"""Settings that are allowed alone and not together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from payloadd.config.shared_journal import shared_journal_problems

if TYPE_CHECKING:
    from collections.abc import Mapping


def contradictions_of(values: Mapping[str, Any]) -> list[str]:
    """Return a line for each contradiction in parsed settings, which may be incomplete."""
    length = values.get("max_length", 0)
    problems = [
        f"{name.upper()}: {values[name]} bytes is not allowed;"
        f" allowed is MAX_LENGTH ({length} bytes) or more"
        for name in ("max_queue_bytes", "max_request_bytes", "journal_max_bytes")
        if length > values.get(name, length)
    ]
    tls = [values.get(name) for name in ("tls_cert", "tls_key", "tls_client_ca")]
    if any(tls) and not all(tls[:2]):
        problems.append("TLS_CERT, TLS_KEY: one of the two is missing; allowed is both or none")
    proxies = [values.get("trusted_proxies"), values.get("client_address")]
    if any(proxies) and not all(proxies):
        problems.append(
            "TRUSTED_PROXIES, CLIENT_ADDRESS: one of the two is missing; allowed is both or none"
        )
    keys = [values.get("aws_access_key_id"), values.get("aws_secret_access_key")]
    if any(keys) and not all(keys):
        problems.append(
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY: one of the two is missing;"
            " allowed is both or none"
        )
    return problems + shared_journal_problems(values)
