"""``payloadd journal`` names the stream where there are several."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from payloadd.cli.journal import _for_terminal, _letter_document, journal
from payloadd.journal.sqlite import stream_rows
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.operations import Bury
from payloadd.journal.sqlite.schema import FILE
from tests.support.journal import append, batch, id_of

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a STATE_DIR with a dead letter in each of two streams, and a waiting job in one."""
    with closing(Database(tmp_path / FILE)) as database:
        database.open_streams(("default", "clicks"))
        requests = [append(1), append(11, count=2)]
        requests[1].stream = 1
        database.commit(list(requests))
        letters = [batch(one.jobs[0], sealed=False) for one in requests]
        database.commit([Bury(one, "C", "reason") for one in letters])
    return tmp_path


def run(folder: Path, *arguments: str) -> Result:
    """Run ``payloadd journal`` on the journal in a folder."""
    done = CliRunner().invoke(journal, arguments, env={"STATE_DIR": str(folder)})
    assert done.exit_code == 0, done.output
    return done


def test_dead_letters_are_listed_with_their_stream(folder: Path) -> None:
    """An operator could not tell whose payloads the store has refused."""
    default, clicks = run(folder, "dead", "list").stdout.splitlines()
    assert "  1 payloads  reason" in default
    assert "  1 payloads  clicks  reason" in clicks
    letters = json.loads(run(folder, "dead", "list", "--json").stdout)
    assert [letter["stream"] for letter in letters] == ["default", "clicks"]


def test_a_dead_letter_is_shown_with_its_stream(folder: Path) -> None:
    """As above; standard output has the payloads alone, so that it can be posted again."""
    shown = run(folder, "dead", "show", str(id_of(11)))
    assert (shown.stdout, shown.stderr) == ("11\n", "stream clicks\n")
    shown = run(folder, "dead", "show", str(id_of(1)))
    assert (shown.stdout, shown.stderr) == ("1\n", "")


def test_a_dead_letter_is_shown_as_one_json_object(folder: Path) -> None:
    """A program would have to read two streams, and the list, to know what the payloads are."""
    shown = run(folder, "dead", "show", "--json", str(id_of(11)))
    assert shown.stderr == ""
    found = json.loads(shown.stdout)
    (listed,) = json.loads(run(folder, "dead", "list", "--json").stdout)[1:]
    assert found == {**listed, "content": [11], "unparsed": []}


def test_lines_that_are_no_json_are_shown_in_base64() -> None:
    """The document of a damaged dead letter would not be JSON, or would lack a part."""
    lines = b'1.50\n{"a":"\xc2\x9b"}\n{"a\n\xff\n'
    found = _letter_document([], lines)
    assert found == b'{"content":[1.50,{"a":"\\u009b"}],"unparsed":["eyJh","/w=="]}'


def test_no_control_of_a_dead_letter_reaches_a_terminal() -> None:
    """A client could write to the terminal of the operator; damaged lines may be no JSON."""
    lines = '{"a":"\u009b\u202e ü"}\n\x1b[2J\x9b\n'.encode("latin-1", "ignore") + b"\xff\t\r\n"
    shown = _for_terminal('{"a":"\u009b ü"}\n'.encode() + lines)
    assert shown.startswith('{"a":"\\u009b ü"}\n'.encode())
    assert not {0x1B, 0x9B, 0x0D} & set(shown.decode().encode("utf-32-le")[::4])
    assert shown.count(b"\n") == 4


def test_names_of_streams_cannot_write_to_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged journal, or one of another program, may have any text."""
    evil = "x\x1b[2J\x9b"
    monkeypatch.setattr(stream_rows, "read", lambda _: {0: "default", 1: evil})
    for arguments in (("status",), ("dead", "list"), ("dead", "show", str(id_of(11)))):
        shown = run(folder, *arguments)
        assert not {"\x1b", "\x9b"} & set(shown.stdout + shown.stderr)
        assert "x\\u001b[2J" in shown.stdout + shown.stderr


def test_changes_of_dead_letters_are_reported_as_json(folder: Path) -> None:
    """A program would have to take the number out of a sentence."""
    retried = run(folder, "dead", "retry", "--json", str(id_of(1)))
    assert json.loads(retried.stdout) == {"retried": 1, "running": False}
    dropped = run(folder, "dead", "drop", "--json", str(id_of(1)), str(id_of(11)))
    assert json.loads(dropped.stdout) == {"dropped": 2}


def test_the_status_has_a_line_for_each_stream(folder: Path) -> None:
    """It would be unknown which stream has the backlog."""
    lines = run(folder, "status").stdout.splitlines()
    assert lines[-2].startswith("stream default: jobs 0, payloads 0, ")
    assert lines[-1].startswith("stream clicks: jobs 1, payloads 1, ")
    found = json.loads(run(folder, "status", "--json").stdout)
    assert found["streams"]["clicks"]["dead_letters"] == 1


def test_one_stream_is_not_named(tmp_path: Path) -> None:
    """The text would be longer for all users without streams; JSON has the same form always."""
    with closing(Database(tmp_path / FILE)) as database:
        database.commit([append(1, count=3)])
    assert "stream" not in run(tmp_path, "status").stdout
    found = json.loads(run(tmp_path, "status", "--json").stdout)
    assert [*found["streams"]] == ["default"]
    assert found["streams"]["default"]["jobs"] == found["jobs"] == 3
