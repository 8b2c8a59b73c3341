"""``payloadd systemd install`` and ``remove`` in a folder, and the unit files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

from payloadd.cli import units
from payloadd.cli.main import main
from payloadd.cli.units import COMPLETIONS, FILES, LINK, MAN_PAGE, transient_unit
from payloadd.config import settings as config
from tests.support.daemon import ROOT

UNITS: Final = ROOT / "systemd"
PLACE: Final = "usr/local/lib/systemd/system"


def run(*arguments: str, root: Path, status: int = 0) -> str:
    """Run ``payloadd systemd …`` for a system in ``root``."""
    result = CliRunner().invoke(main, ["systemd", *arguments, "--root", str(root)])
    assert result.exit_code == status, result.output
    return result.output


def files(root: Path) -> dict[str, str]:
    """Return every file below ``root``."""
    return {
        str(path.relative_to(root)): path.read_text()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_an_installation_is_complete_and_can_be_repeated(tmp_path: Path) -> None:
    """An upgrade would remove the administrator's settings and instances."""
    run("install", root=tmp_path)
    first = files(tmp_path)
    assert set(first) == {str(place) for place in FILES.values()} | {
        f"{PLACE}/payloadd.target.d/instances.conf",
        "etc/payloadd/payloadd.env",
        *map(str, (MAN_PAGE, *COMPLETIONS.values())),
    }
    command = str(Path(sys.executable).with_name("payloadd"))
    assert f"ExecStart={command} serve" in first[f"{PLACE}/payloadd.service"]
    assert (tmp_path / "etc/payloadd/payloadd.env").stat().st_mode & 0o777 == 0o600

    (tmp_path / "etc/payloadd/payloadd.env").write_text("MAX_WORKERS=1\n")
    run("install", "--instances", "3", root=tmp_path)
    again = run("install", root=tmp_path)
    assert "wrote" not in again
    assert "linked" not in again
    after = files(tmp_path)
    assert after["etc/payloadd/payloadd.env"] == "MAX_WORKERS=1\n"
    assert after[f"{PLACE}/payloadd.target.d/instances.conf"] == (
        "[Unit]\nWants=payloadd@1.service payloadd@2.service payloadd@3.service\n"
    )


def test_a_removal_leaves_the_settings(tmp_path: Path) -> None:
    """A removal would delete settings, or leave units."""
    run("install", root=tmp_path)
    run("remove", root=tmp_path)
    assert set(files(tmp_path)) == {"etc/payloadd/payloadd.env"}
    assert not (tmp_path / LINK).is_symlink()
    assert not list((tmp_path / PLACE).iterdir())
    assert run("remove", root=tmp_path) == ""


def test_units_in_an_image_name_the_path_inside_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that boots from the image would look for the command where it was built."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "usr/lib/payloadd/bin/python3"))
    run("install", root=tmp_path)
    unit = (tmp_path / PLACE / "payloadd@.service").read_text()
    assert "ExecStart=/usr/lib/payloadd/bin/payloadd serve" in unit
    assert "/opt/payloadd" not in unit


def test_the_command_is_on_the_path_after_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator would have to know the folder of the virtual environment by heart."""
    run("install", root=tmp_path)
    assert (tmp_path / LINK).readlink() == Path(sys.executable).with_name("payloadd")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "opt/new/bin/python3"))
    assert "linked" in run("install", root=tmp_path)
    assert (tmp_path / LINK).readlink() == Path("/opt/new/bin/payloadd")


@pytest.mark.parametrize("target", [None, "/opt/other/bin/tool"])
def test_another_program_on_the_path_is_kept(tmp_path: Path, target: str | None) -> None:
    """An installation or a removal would delete a program of the administrator."""
    link = tmp_path / LINK
    link.parent.mkdir(parents=True)
    link.write_text("program") if target is None else link.symlink_to(target)
    before = link.lstat()
    assert f"kept     {link}" in run("install", root=tmp_path)
    run("remove", root=tmp_path)
    assert link.lstat() == before
    assert target is None or link.readlink() == Path(target)


def test_a_command_that_is_on_the_path_needs_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link would lead to itself."""
    command = tmp_path / LINK
    command.parent.mkdir(parents=True)
    command.write_text("the command")
    monkeypatch.setattr(sys, "executable", str(command.with_name("python3")))
    run("install", root=tmp_path)
    run("remove", root=tmp_path)
    assert command.read_text() == "the command"


def test_a_command_gets_what_the_unit_says_about_its_process() -> None:
    """The operator would check other settings than those of the daemon."""
    text = (UNITS / "payloadd@.service").read_text() + "Environment=A=1 \\\n  B=2\n"
    assert transient_unit(text, "3", "x") == [
        *("systemd-run", "--unit=x", "--quiet", "--collect", "--wait", "--pipe"),
        "--property=EnvironmentFile=-/etc/payloadd/payloadd.env",
        "--property=Environment=ADMIN_BIND=127.0.0.3:8081",
        "--property=EnvironmentFile=-/etc/payloadd/payloadd@3.env",
        *("--property=User=payloadd", "--property=Group=payloadd"),
        *("--property=StateDirectory=payloadd/3", "--property=StateDirectoryMode=0700"),
        "--property=WorkingDirectory=/var/lib/payloadd/3",
        "--property=UMask=0027",
        "--property=Environment=A=1    B=2",
        "--",
    ]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with systemctl and systemd-run, which are alone on the PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in (("systemctl", 'echo "User=payloadd"'), ("systemd-run", "exit 7")):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{folder}/ran\n{text}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_the_status_of_a_command_is_passed_on(programs: Path) -> None:
    """A script could not see that a check failed."""
    result = CliRunner().invoke(main, ["systemd", "run", "journal", "status", "--json"])
    assert result.exit_code == 7
    cat, ran = (programs / "ran").read_text().splitlines()
    assert cat == "systemctl cat payloadd.service"
    command = Path(sys.executable).with_name("payloadd")
    assert ran.endswith(f" --property=User=payloadd -- {command} journal status --json")


def test_a_command_that_is_interrupted_is_stopped(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that waits for a slow store would go on in the background."""
    run = subprocess.run

    def interrupted(command: list[str], *, check: bool, **options: object) -> object:
        if command[0] == "systemd-run":
            raise KeyboardInterrupt
        return run(command, check=check, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", interrupted)
    result = CliRunner().invoke(main, ["systemd", "run", "check"])
    assert result.exit_code == 130
    assert f"systemctl stop payloadd-command-{os.getpid()}" in (programs / "ran").read_text()


def test_a_command_for_an_unknown_unit_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The operator would see a traceback on a machine without systemd."""
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(main, ["systemd", "run", "check"])
    assert result.exit_code == 1
    assert result.output.startswith("payloadd: ")


def test_a_write_error_is_one_line(tmp_path: Path) -> None:
    """A user that is not root would see a traceback."""
    (tmp_path / "usr").write_text("no folder")
    output = run("install", root=tmp_path, status=1)
    assert output.startswith("payloadd: ")
    assert output.count("\n") == 1


def test_a_running_systemd_reloads_its_units(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Systemd would use the old units, and the user would be missing."""
    ran: list[tuple[str, ...]] = []

    def record(command: tuple[str, ...], *, check: bool) -> None:
        assert check
        ran.append(command)

    monkeypatch.setattr(units, "_is_running_system", lambda _: True)
    monkeypatch.setattr(subprocess, "run", record)
    run("install", root=tmp_path)
    sysusers = str(tmp_path / "usr/local/lib/sysusers.d/payloadd.conf")
    assert ran == [("systemd-sysusers", sysusers), ("systemctl", "daemon-reload")]
    ran.clear()
    run("remove", root=tmp_path)
    names = ("payloadd.service", "payloadd.target", "payloadd.socket")
    assert ran == [("systemctl", "disable", "--now", *names), ("systemctl", "daemon-reload")]


def test_the_environment_file_has_every_setting() -> None:
    """An administrator would not find a setting, or read a wrong default."""
    expected = [
        f"# {item.metadata['doc']}\n"
        f"#{config.names_of(item.name)[0]}={item.metadata['default'] or ''}"
        for item in fields(config.Settings)
    ]
    text = (UNITS / "payloadd.env").read_text()
    assert text.strip().split("\n\n")[1:] == expected
    # The values shown can be set as they are.
    shown = dict(re.findall(r"(?m)^#([A-Z0-9_]+)=(.+)$", text))
    assert config.load(shown) == config.load({})


def test_both_units_differ_only_where_instances_need_it() -> None:
    """A line of the sandbox would be fixed in one unit and missing in the other."""
    one = set((UNITS / "payloadd.service").read_text().splitlines())
    many = set((UNITS / "payloadd@.service").read_text().splitlines())
    assert {line for line in one ^ many if line and not line.startswith("#")} == {
        "Description=payloadd: takes JSON payloads by HTTP POST and stores them in S3",
        "Description=payloadd %i: takes JSON payloads by HTTP POST and stores them in S3",
        "PartOf=payloadd.target",
        "Sockets=payloadd.socket",
        "NonBlocking=yes",
        "Environment=ADMIN_BIND=127.0.0.%i:8081",
        "EnvironmentFile=-/etc/payloadd/payloadd@%i.env",
        "StateDirectory=payloadd",
        "StateDirectory=payloadd/%i",
        "WorkingDirectory=%S/payloadd",
        "WorkingDirectory=%S/payloadd/%i",
        "RuntimeDirectory=payloadd",
        "WantedBy=multi-user.target",
        "WantedBy=payloadd.target",
    }


def test_the_limits_are_enough_for_the_defaults() -> None:
    """With all connections in use the daemon would run out of descriptors, or of time to drain."""
    unit = (UNITS / "payloadd.service").read_text()
    settings = config.load({})

    def number(name: str) -> int:
        found = re.search(rf"(?m)^{name}=(\d+)", unit)
        assert found is not None
        return int(found[1])

    assert number("LimitNOFILE") >= settings.max_connections + settings.max_workers + 200
    drain = settings.request_timeout + 5 + settings.drain_timeout + 10
    assert number("TimeoutStopSec") > drain
    bodies = settings.max_request_bytes + 150 * 2**20
    objects = 2 * settings.max_workers * settings.batch_max_bytes
    assert number("MemoryMax") * 2**30 > bodies + objects + settings.max_queue_bytes


def test_units_create_objects_that_only_user_and_group_can_read() -> None:
    """Every user of the machine could read the payloads."""
    for unit in ("payloadd.service", "payloadd@.service"):
        assert "\nUMask=0027\n" in (UNITS / unit).read_text()
