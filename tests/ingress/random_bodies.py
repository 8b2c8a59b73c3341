"""Random bodies: JSON values, collections and lines, in many styles of printing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random

TOO_DEEP: Final = 400_000
"""More levels than any version of the interpreter reads."""
MOST_PAYLOADS: Final = 20
_SPACES: Final = ("", "", "", "", " ", "\n", "\r\n", "\t", "\r", " \n ")
_TEXTS: Final = (
    *('""', '"a"', '"é"', '"🜁"', '"\\ud83d\\ude00"', '"\\"\\\\\\/\\b\\f\\n\\r\\t"', '"\\u0000"'),
    *('"\\ud800"', '"\\ude00\\ud83d"', '"\x7f"', '"\u2028"', '"payloads"', '"a,b]}"', '"\\u00E9"'),
)
_NUMBERS: Final = (
    *("0", "-0", "1", "12", "-1.50", "1e5", "1E+5", "1e-400", "1e400", "0.1", "0e0", "9" * 5000),
    *("18446744073709551616", "-9223372036854775809", "1" + "0" * 400 + ".5"),
)
_NAMES: Final = (
    *('"batch"', '"b\\u0061tch"'),
    *('"payloads"', '"data"', '"version"', '"token"', '"other"', '"\\u0070ayloads"', '""'),
    *('"d\\u0061ta"', '"Payloads"', '"payloads "', '"\\ud800"', '"\\u0064\\u0061\\u0074\\u0061"'),
)


def make_value(chance: random.Random, depth: int = 0) -> str:
    """Return a JSON value in some style of printing."""
    space = chance.choice(_SPACES)
    match chance.randrange(10):
        case 0 | 1 if depth < 4:
            inner = (make_value(chance, depth + 1) for _ in range(chance.randrange(4)))
            return f"[{space}" + f"{space},".join(inner) + f"{space}]"
        case 2 | 3 if depth < 4:
            names = (chance.choice((*_NAMES, *_TEXTS)) for _ in range(chance.randrange(4)))
            inner = (f"{name}{space}:{space}{make_value(chance, depth + 1)}" for name in names)
            return f"{{{space}" + f"{space},{space}".join(inner) + f"{space}}}"
        case 4 if chance.random() < 0.03:
            levels = chance.choice((100, TOO_DEEP))
            return "[" * levels + "]" * levels
        case 4 | 5 | 6:
            return chance.choice(_NUMBERS)
        case 7:
            return chance.choice(("true", "false", "null"))
        case _:
            return chance.choice(_TEXTS)


_ARRAY_NAMES: Final = ('"payloads"', '"payloads"', '"data"', '"batch"')


def make_collection(chance: random.Random) -> bytes:
    """Return a JSON document that is mostly a collection."""
    if chance.random() < 0.2:
        return _member('"array"', chance).encode()
    names = [chance.choice(_ARRAY_NAMES)] if chance.random() < 0.8 else []
    if chance.random() < 0.5:
        names += chance.choices(_NAMES, k=chance.randrange(4))
    chance.shuffle(names)
    space = chance.choice(_SPACES)
    members = (f"{name}{space}:{space}{_member(name, chance)}" for name in names)
    return f"{space}{{{space}{f',{space}'.join(members)}{space}}}{space}".encode()


def _member(name: str, chance: random.Random) -> str:
    """Return a value that mostly has the shape of this member."""
    if chance.random() < 0.05:
        return make_value(chance)
    if name in ('"version"', '"token"'):
        return chance.choice(('"1"', "null", '"\\u0031"'))
    count = chance.choice((0, 1, 2, 3, MOST_PAYLOADS, MOST_PAYLOADS + 1))
    space = chance.choice(_SPACES)
    values = (make_value(chance) for _ in range(count))
    return f"[{space}" + f"{space},{space}".join(values) + f"{space}]"


def make_lines(chance: random.Random) -> bytes:
    """Return an NDJSON document, mostly with one value a line."""
    ends = chance.choice((("\n",), ("\r\n",), ("\n", "\r\n", "\n\n", "\r", " \n", "\n\t")))
    count = chance.choice((0, 1, 2, 3, MOST_PAYLOADS, MOST_PAYLOADS + 1))
    values = (make_value(chance).replace("\n", " ") for _ in range(count))
    return "".join(value + chance.choice(ends) for value in values).encode()
