"""Random damage in the journal's files: no payload is altered, stored twice or lost silently."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.sqlite import file_check
from tests.journal.sqlite import fuzz

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.no_cover

_TRIES: Final = {"short": 10, "usual": 40, "long": 4000}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Base:
    """Return the journal that all tries copy."""
    return fuzz.make_base(tmp_path_factory.mktemp("fuzz") / "base", random.Random(1))  # noqa: S311 - no secret


@pytest.mark.parametrize("how", [fuzz.damage, fuzz.damage_pages])
@pytest.mark.parametrize("checked", [True, False], ids=["checked-at-start", "too-large-for-that"])
def test_damage_is_reported(
    base: fuzz.Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    *,
    checked: bool,
    how: Callable[[Path, random.Random], str],
) -> None:
    """A flipped bit would be uploaded as if it were data, or a payload would be lost silently."""
    if not checked:
        monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    tries = _TRIES[request.config.getoption("--fuzz")]
    seed = request.config.getoption("--fuzz-seed")
    first = random.randrange(2**32) if seed is None else seed  # noqa: S311 - as above
    for number in range(first, first + tries):
        try:
            result = fuzz.run(base, tmp_path / "try", random.Random(number), how)  # noqa: S311 - as above
        except Exception as error:
            error.add_note(f"--fuzz-seed={number}")
            raise
        problem = result.problem(base)
        assert problem is None, f"--fuzz-seed={number}: {result.damage}: {problem}"


def test_an_undamaged_journal_is_stored_whole(base: fuzz.Base, tmp_path: Path) -> None:
    """The test above would pass where nothing is stored at all."""
    result = fuzz.run(base, tmp_path / "try", random.Random(0), None)  # noqa: S311 - as above
    assert result.refused is None
    assert result.findings == result.verified == []
    stored = sorted(line for lines in result.objects.values() for line in lines)
    assert stored == sorted(base.payloads)
