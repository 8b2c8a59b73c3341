"""Keys of objects."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.config.parsers import S3Url
from payloadd.model.job import IdSource
from payloadd.model.keys import KeyTemplate, key_problems

# 2026-03-04 05:06:07.089 UTC
MILLISECONDS = 1_772_600_767_089
ID = uuid.UUID(int=(MILLISECONDS << 80) | (7 << 76) | (2 << 62) | 42)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("{date}/{hour}/{id}.ndjson", f"2026-03-04/05/{ID}.ndjson"),
        ("dt={date}/hour={hour}/{id}.ndjson", f"dt=2026-03-04/hour=05/{ID}.ndjson"),
        ("{stream}/{id}", f"clicks/{ID}"),
        ("{{stream}}/{id}", f"{{stream}}/{ID}"),
        ("{minute}-{id}", f"06-{ID}"),
        ("{host}/{id}", f"a-b_c.d-/{ID}"),
        ("100%/{{x}}/%s/{id}", f"100%/{{x}}/%s/{ID}"),
        ("größe/日本/{id}", f"größe/日本/{ID}"),
    ],
)
def test_a_key_depends_on_the_id_alone(text: str, key: str) -> None:
    """A replay after a crash would store an object again under another key."""
    template = KeyTemplate.parse(text, host="a-b_c.d!", stream="clicks")

    assert template.render(ID) == key
    assert template.render(ID) == key


def test_keys_have_the_minute_of_their_own_id() -> None:
    """An object would be stored under the hour of another object."""
    template = KeyTemplate.parse("{date}/{hour}/{minute}/{id}")
    later = uuid.UUID(int=ID.int + (3_600_000 << 80))

    hours = [template.render(one).split("/")[1] for one in (ID, later, ID)]

    assert hours == ["05", "06", "05"]


def test_consecutive_ids_are_spread_over_all_shards() -> None:
    """S3 would respond with SlowDown because one of its partitions gets all requests."""
    template = KeyTemplate.parse("{shard}/{id}")
    shards = {template.render(one)[:2] for one in IdSource().new_ids(4096)}

    assert len(shards) == 256


@given(st.integers(0, 2**41), st.integers(0, 2**62 - 1))
def test_keys_are_unique_and_stay_within_s3s_limit(moment: int, random: int) -> None:
    """Two objects would have one key, and one of them would be lost."""
    template = KeyTemplate.parse("{date}/{hour}/{minute}/{shard}/{host}/{id}", host="h" * 300)
    one = uuid.UUID(int=(moment << 80) | (7 << 76) | (2 << 62) | random)
    key = template.render(one)

    assert key.endswith(str(one))
    assert len(key) <= 1024


def test_the_name_of_the_machine_is_the_default_host() -> None:
    """Objects of several machines could not be distinguished."""
    assert KeyTemplate.parse("{host}/{id}").render(ID).split("/")[0]


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("{date}", "{id}"),
        ("{id}/{year}", "{stream}, {date}, {hour}"),
        ("{id:>40}", "{date}"),
        ("{id!r}", "{date}"),
        ("{id}{", "braces"),
        ("{id}}", "braces"),
        ("{}{id}", "{date}"),
        ("/{id}", "doubled"),
        ("{id}/", "doubled"),
        ("a//{id}", "doubled"),
        ("../{id}", "doubled"),
        ("./{id}", "doubled"),
        ("{host}/{id}", "doubled"),
        ("a\nb{id}", "control"),
        ("a\x00b{id}", "control"),
        ("\udcff{id}", "UTF-8"),
        ("a" * 230 + "{id}", "240 bytes"),
        ("a" * 142 + "{stream}{id}", "240 bytes"),
        ("ab/" * 330 + "{id}", "1024 bytes"),
    ],
)
def test_an_invalid_template_is_refused_with_a_reason(text: str, allowed: str) -> None:
    """A wrong template would be found by lost objects instead of at the start."""
    with pytest.raises(ValueError, match=allowed):
        KeyTemplate.parse(text, host="..")


def test_the_prefix_counts_for_the_length_of_a_key() -> None:
    """S3 would refuse every object with KeyTooLongError."""
    values = {"key_template": "{id}", "store_url": S3Url("bucket", "p" * 900)}
    assert key_problems(values) == []
    (problem,) = key_problems(values | {"store_url": S3Url("bucket", "p" * 1000)})
    assert "the prefix has 1000 bytes; allowed are 1024 bytes" in problem


@pytest.mark.parametrize(
    ("text", "folder", "shared"),
    [
        ("{date}/{id}", "", ""),
        ("logs/{date}/{id}", "logs/", "logs/"),
        ("dt={date}/{id}.ndjson", "", "dt="),
        ("{stream}/dt={date}/{id}.ndjson", "", ""),
        ("a/x-{stream}/dt={date}/{id}.ndjson", "a/", "a/x-"),
        ("a/{host}/b/{hour}/{id}", "a/m-1/b/", "a/m-1/b/"),
        ("{{x}}/{shard}/{id}", "{x}/", "{x}/"),
    ],
)
def test_the_keys_of_a_check_are_beside_the_folders_of_data(
    text: str, folder: str, shared: str
) -> None:
    """A reader would take the probe for data, or a check need rights that the daemon does not."""
    (id_,) = IdSource().new_ids(1)
    template = KeyTemplate.parse(text, host="m-1")
    keys = template.probe_keys(id_, "prefix")
    name = f"payloadd-check-{id_}.ndjson"
    expected = [folder + name, shared + name, template.render(id_)]
    assert keys == list(dict.fromkeys(expected))
    assert keys[-1].startswith(shared)


def test_a_key_of_a_check_is_not_longer_than_s3_allows() -> None:
    """`payloadd check` would fail with a template that the daemon can use."""
    (id_,) = IdSource().new_ids(1)
    template = KeyTemplate.parse(f"{'f' * 200}/{{id}}")
    assert len(template.probe_keys(id_, "p" * 700)) == 2
    assert template.probe_keys(id_, "p" * 770) == [template.render(id_)]
