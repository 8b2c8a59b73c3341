"""The commands of README.md: each console block is run, and its output is what the README shows.

A new block has to be added here, to the session that runs it, or to the list of those that cannot
be run, with the reason.
"""

from __future__ import annotations

import gzip
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.readme import Block, Session, assert_same, blocks, masked, readme_blocks
from tests.support.s3 import S3Server
from tests.support.senders import wait_for
from tests.support.tools import find_tool, need_tools
from tests.system.systemd.conftest import INSTALL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.no_cover

FIRST: Final = (
    "The first payload: $ curl -i -H 'Content-Type: application/",
    "The first payload: $ tail -v payloadd-data/objects/*/*/*.nd",
    "Waiting for the upload: $ curl -i -H 'Content-Type: application/",
    "Exactly once, from end to end: $ curl -H 'Content-Type: application/x-n",
    "Sending files: $ payloadd send --url http://127.0.0.1:8",
)
"""Blocks for one daemon, in their order; then it is stopped, and its log is compared."""
LOG: Final = "The first payload: $ payloadd serve"
ALONE: Final = (
    "Installing it: $ payloadd --version",
    "Who may post: $ payloadd token shop",
    "Streams: $ STREAMS=clicks,errors payloadd serve &",
    "Envelopes: $ ENVELOPE='received_at,client,name,head",
)
"""Blocks that each run in a folder of their own."""
NO_BUCKET: Final = "When something is wrong: $ curl http://127.0.0.1:8081/readyz"
JOURNAL: Final = "The journal: $ payloadd journal status"
RUN_UNDER_SYSTEMD: Final = "systemd: $ payloadd systemd run check"
LOG_UNDER_SYSTEMD: Final = "The log: $ journalctl -u payloadd -o cat PAYLOADD"
"""Blocks that system/systemd/test_readme.py runs in a machine with systemd."""

RUN_ELSEWHERE: Final = {
    "Two commands: python3 -m venv .venv && .venv/bin/pip i": (
        # The same line twice: to run the daemon, and to run the tests.
        "system/test_installers.py installs the wheel with pip in a new environment and starts it;"
        " .ci/run runs the tests in a new environment"
    ),
    "curl: curl --json '{\"a\": 1}' http://127.0.0.1:": "system/test_senders.py",
    "S3: .venv/bin/pip install 'moto[s3,server]'": "system/test_command_line.py",
    "Installing it: pipx install .              # or: uv too": "system/test_installers.py",
    "Installing it: apt-get install dh-virtualenv debhelper": (
        "system/systemd/test_debian_package.py"
    ),
    'Installing it: eval "$(_PAYLOADD_COMPLETE=bash_source p': "cli/test_shell_files.py",
    "systemd: python3 -m venv /opt/payloadd": "system/systemd/conftest.py, for its tests",
    "systemd: python3 -m venv /opt/payloadd-0.2": "system/systemd/test_upgrade.py",
}
"""Blocks of shell commands that other tests run."""
NOT_RUN: Final = {
    "Two commands: git clone REPOSITORY payloadd && cd payl": "the address is the reader's",
    "S3: STORE_URL=s3://my-bucket/telemetry AWS_R": "needs a bucket of AWS",
    "Objects: BATCH_LINGER=30s COMPRESSION=zstd": "settings, no command",
    "Containers: pip wheel --no-deps -w dist .": (
        "needs podman; system/test_container.py does what the recipe says in a tree of Debian"
    ),
    "A journal that machines share: pip install 'payloadd[postgres]'": (
        "needs machines; crash/test_fleet.py and journal/postgres/ test it with three processes"
    ),
    "Settings: openssl req -x509 -newkey ec -pkeyopt ec": "needs openssl, and makes files only",
    "Speed: apt-get install wrk nginx-light golang-g": (
        "the benchmark takes an hour; bench/ has short tests of it"
    ),
}
"""Blocks of shell commands that no test runs, and the reasons."""


def block(name: str) -> Block:
    """Return the block with this name."""
    (found,) = (one for one in readme_blocks("console", "sh") if one.name == name)
    return found


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """Return a session in a new folder."""
    need_tools("curl")
    with Session(tmp_path / "session") as session:
        yield session


def all_stored(session: Session, payloads: int) -> bool:
    """Return whether the daemon counts so many payloads as stored."""
    metrics = session.output("curl http://127.0.0.1:8081/metrics")
    return f"payloadd_payloads_stored_total {payloads}.0\n" in metrics


def test_every_block_of_commands_is_run_or_has_a_reason() -> None:
    """A command of the README could stop working, and no test would say so."""
    console = [one.name for one in readme_blocks("console")]
    under_systemd = (RUN_UNDER_SYSTEMD, LOG_UNDER_SYSTEMD)
    assert sorted(console) == sorted([*FIRST, LOG, *ALONE, NO_BUCKET, JOURNAL, *under_systemd])
    shell = [one.name for one in readme_blocks("sh")]
    assert sorted({*shell}) == sorted([*RUN_ELSEWHERE, *NOT_RUN])


def test_the_tests_of_the_units_install_as_the_readme_says() -> None:
    """They would test another installation than the one that an administrator makes."""
    commands = block("systemd: python3 -m venv /opt/payloadd").text.splitlines()
    edited = [one for one in commands if not one.startswith("editor ")]
    # The wheel of the checkout, and each test starts the unit with its own settings.
    changed = [one.replace("install .", "install payloadd").replace(" --now", "") for one in edited]
    assert tuple(changed) == INSTALL


def test_the_configurations_of_balancers_are_valid(tmp_path: Path) -> None:
    """An administrator would get a syntax error, or a balancer without health checks."""
    need_tools("haproxy", "nginx")
    (haproxy,) = (one for one in readme_blocks("haproxy") if "option httpchk" in one.text)
    (nginx,) = (one for one in readme_blocks("nginx") if "keepalive 64" in one.text)
    (tmp_path / "haproxy.cfg").write_text(haproxy.text + "\n")
    (tmp_path / "nginx.conf").write_text(f"events {{}}\nhttp {{\n{nginx.text}\n}}\n")
    for command in (
        [find_tool("haproxy"), "-c", "-f", str(tmp_path / "haproxy.cfg")],
        [find_tool("nginx"), "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def test_a_reader_of_the_first_pages_sees_what_they_show(session: Session) -> None:
    """A newcomer whose first request answers something else does not try a second one."""
    lines = [b'{"n": %d}\n' % number for number in range(2104)]
    (session.folder / "yesterday.ndjson.gz").write_bytes(gzip.compress(b"".join(lines[:1000])))
    (session.folder / "today.ndjson").write_bytes(b"".join(lines[1000:]))
    session.serve()
    post, objects, *others = (block(name) for name in FIRST)
    session.run(post)
    wait_for(lambda: list(session.folder.glob("payloadd-data/objects/*/*/*.ndjson")))
    session.run(objects)
    for one in others:
        session.run(one)
    wait_for(lambda: all_stored(session, 2109))
    session.stop()
    ((_, expected),) = block(LOG).steps()
    assert_same(expected, session.log, LOG)


@pytest.mark.parametrize("name", ALONE)
def test_a_block_shows_what_its_commands_print(name: str, session: Session) -> None:
    """A user would take the difference for a fault of the installation."""
    one = block(name)
    if len(list(one.steps())) == 1:
        session.run(one)
        return
    # Its last command shows the objects, which are stored a second after the request.
    *before, (command, expected) = one.steps()
    for step, answer in before:
        if step.endswith("&"):
            session.serve(step.removesuffix("&"))
        else:
            assert_same(answer, session.output(step), step)
    wait_for(lambda: list(session.folder.rglob("*.ndjson")))
    assert_same(expected, session.output(command), command)


def test_a_trouble_is_found_as_the_readme_shows(session: Session, moto: S3Server) -> None:
    """An operator at night would look for lines that are not there."""
    session.ports["5000"] = int(moto.endpoint.rpartition(":")[2])
    session.settings |= {**moto.environ, "STORE_URL": "s3://my-bucket"}
    session.serve()
    session.output(
        "curl -d '[1]' -H 'Content-Type: application/json' http://127.0.0.1:8080/v1/payloads"
    )
    wait_for(lambda: "store_unavailable" in session.log)
    session.run(block(NO_BUCKET))


def test_the_state_of_the_journal_is_shown_as_in_the_readme(session: Session) -> None:
    """An operator would not know which line means what."""
    closed = f"http://127.0.0.1:{session.ports['5000']}"
    server = S3Server(closed, "any", "any")
    session.settings |= {**server.environ, "STORE_URL": "s3://my-bucket"}
    session.serve()
    session.output(
        "curl -d '[1, 22, 333]' -H 'Content-Type: application/json' -H 'Idempotency-Key: k'"
        " http://127.0.0.1:8080/v1/payloads"
    )
    wait_for(lambda: "store_unavailable" in session.log)
    session.run(block(JOURNAL))


def test_blocks_and_their_steps_are_found() -> None:
    """The tests above would pass over a block that is indented or has long commands."""
    text = "# A\n```console\n$ one \\\n  two\nout\n$ three\n```\n"
    text += "* x\n\n  ```sh\n  # no heading\n  ```\n"
    first, second = blocks(text)
    assert (first.heading, first.language, first.line) == ("A", "console", 2)
    assert list(first.steps()) == [("one \\\n  two", "out\n"), ("three", "")]
    assert (second.heading, second.language, second.text) == ("A", "sh", "# no heading\n")


def test_a_difference_is_shown_as_a_diff() -> None:
    """A failure would not say what to change in the README."""
    same = "2026-11-27T07:59:21.482286Z [info] x 01a21c04-23ce-7afb-9d24-7d8f576a13aa"
    assert masked(same) == "<time> [info] x <id>"
    assert_same(same, same.replace("07:59", "08:00").replace("23ce", "23cf"), "here")
    with pytest.raises(AssertionError, match=r"(?s)here.*-accepted=1\n\+accepted=2"):
        assert_same("accepted=1\n", "accepted=2\n", "here")
