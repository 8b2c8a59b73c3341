"""Fixtures of the tests of the fast path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.ingress.fastpath.heads import STREAMS, parser_of

if TYPE_CHECKING:
    from payloadd.ingress.fastpath.head import HeadParser


@pytest.fixture
def parser() -> HeadParser:
    """Return a parser of heads with empty caches."""
    return parser_of(STREAMS)
