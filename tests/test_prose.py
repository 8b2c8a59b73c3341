"""The prose of the tree: no pronoun without a noun, no private metaphor, one name for one class.

The tests check comments, docstrings and identifiers, and in ``daemon/`` every string with a space:
log texts, errors, and the help of the command line.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[1]

_PRONOUNS: Final = r"who|whom|whoever|nobody|somebody"
"""Words that hide which program or person is meant."""
_METAPHORS: Final = (
    r"fillers?|clearances?|doors?|blamed?|farewells?|houses?|desks?|chores?|sky|skies|crowds?"
    r"|autops(?:y|ies)|ledgers?|patience|moody"
)
"""Private words of former versions; the glossary of ``daemon/README.md`` has their successors."""
_METAPHORS_IN_CONTEXT: Final = (
    # Not "at hand", "by hand", "hand over"; not "room for 10 bytes"; not "opening a file".
    r"in hand|(?:an?|the|each|free|idle|empty) hands?|\w+'s? hands?|an? room|rooms"
    r"|(?:an?|the|each|its) opening(?! (?:brace|bracket|of))"
    # Former versions named documents outside of this tree.
    r"|the contract's|of the contract|the seed(?:'s)?"
)
_IDENTIFIERS: Final = rf"{_PRONOUNS}|{_METAPHORS}|hands?|rooms|opening|at_once"
"""Words that no identifier of ``daemon/`` consists of; ``handle`` and ``accepted_at_once`` may."""


def _files(*folders: str) -> list[Path]:
    """Return the Python files below the folders, apart from this one, which lists the words."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if path != Path(__file__).resolve())


def _comments_and_identifiers(source: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Return line and text of every comment, and of every identifier."""
    found: dict[int, list[tuple[int, str]]] = {tokenize.COMMENT: [], tokenize.NAME: []}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in found:
            found[token.type].append((token.start[0], token.string))
    return found[tokenize.COMMENT], found[tokenize.NAME]


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string that is a statement: docstrings, those of values too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.lineno, str(node.value.value)


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string with a space in it, parts of f-strings included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def _hits(path: Path) -> list[str]:
    """Return ``file:line: word`` for every word of a file that the rules forbid."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    in_daemon = path.is_relative_to(ROOT / "daemon")
    words = [_PRONOUNS, _METAPHORS, _METAPHORS_IN_CONTEXT] if in_daemon else [_PRONOUNS]
    prose = re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)
    names = re.compile(_IDENTIFIERS if in_daemon else _PRONOUNS, re.IGNORECASE)
    comments, identifiers = _comments_and_identifiers(source)
    texts = [*comments, *(_texts(tree) if in_daemon else _docstrings(tree))]
    found = {(line, hit[0]) for line, text in texts for hit in prose.finditer(text)}
    for line, name in identifiers:
        # `_in_CamelCase` → "in", "Camel", "Case"; `_AT_ONCE` is looked up as a whole.
        parts = [name.strip("_"), *re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
        found |= {(line, name) for part in parts if names.fullmatch(part)}
    return [f"{path.relative_to(ROOT)}:{line}: {word}" for line, word in sorted(found)]


@pytest.mark.no_cover
def test_no_forbidden_word_is_used() -> None:
    """A reader has to guess which part of the program a pronoun or a private word means."""
    hits = [hit for path in _files("daemon", "tests") for hit in _hits(path)]
    assert not hits, "\n" + "\n".join(hits)


def test_no_two_public_classes_have_one_name() -> None:
    """A reader who searches for a class finds another one of the same name."""
    places = defaultdict(list)
    for path in _files("daemon"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('"""Whoever reads."""\n', ["Whoever"]),
        ("x = 1  # nobody is woken\n", ["nobody"]),
        ("fill_hands = 1\n", ["fill_hands"]),
        ("class TheSky: ...\n", ["TheSky"]),
        ("_AT_ONCE = 1\n", ["_AT_ONCE"]),
        ('print(f"{1} waits at the door")\n', ["door"]),
        ("# free hands; the batch in hand; the workers' hands\n",
         ["free hands", "in hand", "workers' hands"]),
        ('"""Handle it by hand, hand it over; room for 10 bytes; an opening brace."""\n', []),
        ("accepted_at_once = handle = 1\n", []),
    ],
)  # fmt: skip
def test_forbidden_words_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: list[str]
) -> None:
    """The test above passes whatever the prose is like."""
    path = tmp_path / "daemon" / "module.py"
    path.parent.mkdir()
    path.write_text(source)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    found = [hit.rpartition(": ")[2] for hit in _hits(path)]
    assert sorted(found) == sorted(words)
