"""NDJSON objects, not compressed and compressed; and what every format of objects promises."""

from __future__ import annotations

import gzip
import uuid
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from payloadd.config.settings import load
from payloadd.errors import SettingsError
from payloadd.model.formats import FORMATS
from payloadd.model.formats.ndjson import Ndjson
from payloadd.model.job import Job
from tests.support.objects import bytes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ID = uuid.UUID(int=0)
DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.decompress,
    "zstd": zstandard.ZstdDecompressor().decompress,
}

NDJSON = [name for name, format_ in FORMATS.items() if isinstance(format_, Ndjson)]


def jobs_of(lines: Sequence[bytes]) -> list[Job]:
    """Return a job for each text."""
    return [Job(seq, ID, text, 1) for seq, text in enumerate(lines, 1)]


@pytest.mark.parametrize("name", NDJSON)
@given(lines=st.lists(st.binary(max_size=2000), min_size=1))
def test_a_decoded_object_has_the_payloads_of_its_jobs(name: str, lines: list[bytes]) -> None:
    """Readers would get other bytes than those that were posted."""
    body = FORMATS[name].encode(jobs_of(lines))
    assert DECODERS[name](bytes_of(body)) == b"".join(lines)
    assert body.size == len(bytes_of(body))


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_jobs_give_the_same_bytes(name: str) -> None:
    """A replay after a crash would store other bytes under the same key."""
    format_ = FORMATS[name]
    jobs = [Job(1, ID, b'{"a":1}\n' * 100, 100), *jobs_of([b'"%b"\n' % (b"x" * 100_000), b"2\n"])]
    first = format_.encode(jobs)
    with patch("time.time", lambda: 0.0):
        again = format_.encode(list(jobs))

    assert first == again
    assert first.kind is format_.kind
    assert name == format_.name


@pytest.mark.parametrize("name", NDJSON)
def test_the_kind_of_ndjson_names_the_type_and_the_compression(name: str) -> None:
    """A reader that follows the headers would read compressed bytes as text."""
    kind = FORMATS[name].kind
    assert (kind.content_type, kind.version) == ("application/x-ndjson", "ndjson-1")
    assert kind.compression == (None if name == "none" else name)
    assert kind.same_bytes == (name == "none")


def test_every_compression_of_ndjson_is_a_value_of_the_setting() -> None:
    """A compression could not be chosen, or the setting would allow one that is missing."""
    for name in NDJSON:
        assert load({"COMPRESSION": name}).compression == name
    with pytest.raises(SettingsError, match=", ".join(NDJSON)):
        load({"COMPRESSION": "other"})


def test_suffixes_and_encoders_distinguish_the_formats() -> None:
    """Two objects with other bytes would have one key, or the journal could not compare them."""
    for attribute in ("name", "suffix", "encoder"):
        assert len({getattr(one, attribute) for one in FORMATS.values()}) == len(FORMATS)
    assert len({FORMATS[name].kind.compression for name in NDJSON}) == len(NDJSON)


@given(st.lists(st.sampled_from([b"", b"1\n", b"x" * 70_000, b"y" * 300_000]), min_size=1))
def test_small_jobs_are_joined_and_large_jobs_are_not_copied(lines: list[bytes]) -> None:
    """A large batch would need its size in memory twice, or many small writes."""
    pieces = FORMATS["none"].encode(jobs_of(lines)).pieces
    assert b"".join(pieces) == b"".join(lines)
    if min(map(len, lines)) > 65_536:
        assert all(piece is line for piece, line in zip(pieces, lines, strict=True))
    else:
        assert len(pieces) <= 1 + 2 * sum(map(len, lines)) // 65_536
