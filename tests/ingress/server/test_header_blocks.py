"""Repeated header blocks of HTTP/2."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from payloadd.ingress.server.header_blocks import RememberingDecoder, RememberingEncoder


def test_a_repeated_block_has_the_headers_of_its_first_time() -> None:
    """Headers of another request would be taken for those of this one."""
    encoder, decoder = hpack.Encoder(), RememberingDecoder(16_384)
    plain = hpack.Decoder(16_384)
    lists = [
        [(b":method", b"POST"), (b"x-a", b"1"), (b"x-b", b"2")],
        [(b":method", b"POST"), (b"x-a", b"1")],
        [(b":method", b"POST"), (b"x-c", b"3")],
    ]
    for number in (0, 0, 0, 1, 1, 0, 2, 0, 0, 1, 2, 2):
        block = encoder.encode(lists[number])
        expected = [tuple(one) for one in plain.decode(block, raw=True)]
        assert [tuple(one) for one in decoder.decode(block, raw=True)] == expected == lists[number]


def test_a_block_is_decoded_again_once_the_table_has_changed() -> None:
    """A client could have the headers of an earlier request, such as its token, used again."""
    decoder = RememberingDecoder(16_384)
    first = b"\x40\x01a\x01x"
    assert [tuple(one) for one in decoder.decode(first, raw=True)] == [(b"a", b"x")]
    newest = b"\xbe"  # the newest entry of the table (RFC 7541, section 2.3.3)
    assert [tuple(one) for one in decoder.decode(newest, raw=True)] == [(b"a", b"x")]
    decoder.decode(b"\x40\x01a\x01y", raw=True)
    assert [tuple(one) for one in decoder.decode(newest, raw=True)] == [(b"a", b"y")]


def test_remembered_blocks_are_bounded() -> None:
    """A client could fill the memory with blocks."""
    decoder = RememberingDecoder(16_384)
    for first in range(0x82, 0x8F):
        for second in range(0x82, 0x8F):
            decoder.decode(bytes([first, second]), raw=True)
    assert len(decoder.known) <= 16
    with pytest.raises(hpack.HPACKError):
        decoder.decode(b"\xfe", raw=True)


def test_a_known_block_is_valid_until_the_table_changes() -> None:
    """Other headers would be taken for checked ones."""
    encoder, decoder = hpack.Encoder(), RememberingDecoder(16_384)
    headers = [(b":method", b"POST"), (b"x-a", b"1")]
    first = encoder.encode(headers)
    decoder.decode(first, raw=True)
    decoder.note_valid(first)
    assert not decoder.valid  # the block is no repetition: it changed the table
    block = encoder.encode(headers)
    decoder.decode(block, raw=True)
    assert block not in decoder.valid  # nothing has checked it yet
    decoder.note_valid(block)
    assert block in decoder.valid
    decoder.decode(encoder.encode([(b"x-b", b"2")]), raw=True)
    assert not decoder.valid


ANSWER = ((b":status", b"202"), (b"content-type", b"application/json"), (b"date", b"now"))
ANSWERS = st.sampled_from(
    [
        ANSWER,
        ((b":status", b"202"), (b"content-type", b"application/json"), (b"date", b"later")),
        ((b":status", b"204"),),
        ((b":status", b"404"), (b"x-long", b"x" * 150)),
    ]
)
SIZES = st.sampled_from([0, 64, 200, 4096, 2**32 - 1])


@given(st.lists(ANSWERS | SIZES, max_size=40))
@example([0, ANSWER, 200, 200, ANSWER, ANSWER])  # hpack forgets to announce the size 200
def test_a_client_reads_every_answer(steps: list[tuple[tuple[bytes, bytes], ...] | int]) -> None:
    """A client would see the headers of another answer, or an error of HPACK."""
    encoder, decoder = RememberingEncoder(), hpack.Decoder()
    for step in steps:
        if isinstance(step, int):
            encoder.header_table_size = step
        else:
            block = encoder.encode([*step])
            assert tuple(map(tuple, decoder.decode(block, raw=True))) == step
    assert len(encoder.known) <= 16


def test_a_client_cannot_have_a_larger_table_of_answers() -> None:
    """It would grow with each date, and each answer would take longer, for all clients."""
    encoder, decoder = RememberingEncoder(), hpack.Decoder()
    decoder.max_allowed_table_size = encoder.header_table_size = 2**32 - 1
    for second in range(200):
        headers = [(b":status", b"202"), (b"date", b"%d" % second)]
        assert [tuple(one) for one in decoder.decode(encoder.encode(headers), raw=True)] == headers
    assert len(encoder.header_table.dynamic_entries) < 110
    encoder.header_table_size = 0
    encoder.encode([(b":status", b"202")])
    assert not encoder.header_table.dynamic_entries


def test_a_repeated_answer_is_encoded_once() -> None:
    """Each answer would cost a search in the table for each header."""
    encoder = RememberingEncoder()
    headers = [(b":status", b"202"), (b"content-type", b"application/json")]
    encoder.encode(headers)
    block = encoder.encode(headers)
    assert encoder.encode(headers) is block
    encoder.header_table_size = 0
    assert encoder.encode(headers) != block
