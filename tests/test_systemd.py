"""The systemd unit is at one with the command line, the documents and what a service needs; systemd verifies it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gateway.cli.doctor import checks
from gateway.serve import supervisor
from gateway.settings.read import read_settings
from tests.peers import require
from tests.test_docs import commands

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "deploy" / "medseg.service"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")


def read(text: str) -> dict[str, list[str]]:
    """The values of each key; keys may stand several times."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and line[0] not in "#;[":
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(key, []).append(value)
    return found


KEYS = read(UNIT.read_text("utf-8"))


def one(key: str) -> str:
    (value,) = KEYS[key]
    return value


def test_the_command_is_one_of_the_command_line() -> None:
    program, command, *options = shlex.split(one("ExecStart"))
    assert Path(program).name == "medseg" and Path(program).is_absolute()
    assert {option for option in options if option.startswith("-")} <= commands()[command]
    assert f"{Path(program).parent}/pip install" in OPERATIONS
    assert options[options.index("--config") + 1] in OPERATIONS


def test_what_the_settings_of_the_document_name_can_be_written() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", OPERATIONS, re.S)
    (text,) = [block for block in blocks if "spool" in tomllib.loads(block).get("gateway", {})]
    settings = read_settings(text, Path("/etc/medseg"))
    state = Path("/var/lib") / one("StateDirectory")
    assert settings.gateway.spool.is_relative_to(state)
    assert Path(settings.gateway.database.removeprefix("sqlite:///")).is_relative_to(state)
    assert one("StateDirectoryMode") == "0700" and one("UMask") == "0077"
    assert one("WorkingDirectory") == str(state)
    assert f"MEDSEG_CACHE=/var/cache/{one('CacheDirectory')}" in one("Environment").split()


def test_it_starts_stops_and_reloads_as_the_service_does() -> None:
    assert one("Type") == "notify"  # tests/gateway/test_watched.py hears it
    assert one("ExecReload") == "/bin/kill -HUP $MAINPID"
    assert one("KillMode") == "mixed"
    assert float(one("TimeoutStopSec")) > 3 * supervisor.PATIENCE_S
    assert float(one("TimeoutStartSec")) > supervisor.PATIENCE_S
    assert one("Restart") == "on-failure" and one("RestartPreventExitStatus") == "2"


def test_it_takes_away_nothing_that_is_needed() -> None:
    assert not KEYS.keys() & {
        "MemoryDenyWriteExecute",
        "PrivateDevices",
        "ProtectClock",
        "PrivateNetwork",
        "ProcSubset",
    }
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} <= set(one("RestrictAddressFamilies").split())
    assert "CAP_NET_BIND_SERVICE" in one("AmbientCapabilities") and "CAP_NET_BIND_SERVICE" in one(
        "CapabilityBoundingSet"
    )


def test_its_limit_of_descriptors_is_enough_for_the_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = int(one("LimitNOFILE"))
    monkeypatch.setattr("gateway.cli.doctor.resource.getrlimit", lambda _: (limit, limit))
    (tmp_path / "medseg.toml").write_text("[limits]\nassociations = 1000\n")
    assert next(check for check in checks(tmp_path / "medseg.toml") if check.name == "file descriptors").ok


def test_the_document_names_the_unit() -> None:
    assert "deploy/medseg.service" in OPERATIONS
    user = one("User")
    assert re.search(rf"^useradd .* {user}$", OPERATIONS, re.M) and one("Group") == user


def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text("utf-8").replace(shlex.split(one("ExecStart"))[0], sys.executable))
    said = subprocess.run([require("systemd-analyze"), "verify", unit], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
