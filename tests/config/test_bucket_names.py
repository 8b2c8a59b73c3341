"""Names of buckets."""

from __future__ import annotations

import pytest

from payloadd.config.bucket_names import bucket_problems


@pytest.mark.parametrize("name", ["?ab", "ab?", "a?b"])
def test_a_wrong_character_has_one_reason(name: str) -> None:
    """An operator would look for a second fault that is not there."""
    assert bucket_problems(name) == ["'?' is not allowed in it"]
