"""The rules for names of buckets.

Source: "General purpose bucket naming rules", Amazon S3 user guide. The underscore is allowed too:
buckets of other servers, and of AWS before 2018, may have it. Access points' aliases, which have
reserved endings, are allowed as well.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

RULE: Final = "3 to 63 characters, of a-z 0-9 - . _, a letter or digit at both ends"
_SHORTEST: Final = 3
_LONGEST: Final = 63
_SHOWN: Final = 80
_MOST_CHARACTERS: Final = 10
_NOT_ALLOWED: Final = re.compile(r"[^a-z0-9._-]")
_ENDS: Final = re.compile(r"[a-z0-9]")
_ADDRESS: Final = re.compile(r"[0-9]+(\.[0-9]+){3}")
_RESERVED: Final = ("xn--", "sthree-", "amzn-s3-demo-")


def bucket_problems(name: str) -> list[str]:
    """Return all reasons for which a bucket cannot have this name; none: it can."""
    if not name:
        return ["the name of the bucket is missing"]
    problems = []
    if upper := [one for one in dict.fromkeys(name) if one.isascii() and one.isupper()]:
        problems.append(f"upper-case letters ({_some(upper)}) are not allowed")
    wrong = [one for one in dict.fromkeys(_NOT_ALLOWED.findall(name)) if one not in upper]
    if wrong:
        problems.append(f"{_some(map(repr, wrong))} is not allowed in it")
    if not _SHORTEST <= len(name) <= _LONGEST:
        problems.append(f"it has {len(name)} characters")
    problems += [
        f"it {does} with {end!r}"
        for does, end in (("begins", name[0]), ("ends", name[-1]))
        if not _ENDS.match(end.lower()) and end not in wrong
    ]
    if ".." in name:
        problems.append("it has two periods in a row")
    if _ADDRESS.fullmatch(name):
        problems.append("it looks like an IP address")
    problems += [f"{one!r} is reserved" for one in _RESERVED if name.startswith(one)]
    return problems


def why_no_bucket(name: str) -> str | None:
    """Return in one sentence why a bucket cannot have this name, and the rule; None if it can."""
    problems = bucket_problems(name)
    if not problems:
        return None
    what = f"the bucket's name {name[:_SHOWN]!r} cannot be used: " if name else ""
    return f"{what}{', '.join(problems)} (a bucket's name has {RULE})"


def _some(texts: Iterable[str]) -> str:
    found = list(texts)
    more = len(found) - _MOST_CHARACTERS
    return ", ".join(found[:_MOST_CHARACTERS]) + (f" and {more} more" if more > 0 else "")
