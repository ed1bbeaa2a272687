"""Container files without an engine: linted, validated, and at one with each other and with what medseg reads."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from gateway.settings.read import load_settings
from tests.peers import require

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = (ROOT / "docker-compose.yml").read_text("utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


@pytest.fixture(scope="module")
def composed() -> str:
    """docker-compose's own reading of the file: every service, normalised."""
    command = [require("docker-compose"), "--file", ROOT / "docker-compose.yml", "config"]
    read = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    return read.stdout


def test_hadolint_has_nothing_to_say() -> None:
    command = [require("hadolint"), "--failure-threshold", "info", ROOT / "Dockerfile"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


def test_compose_publishes_on_loopback_alone(composed: str) -> None:
    published = re.findall(r"- (\S*\d+:\d+/tcp)", composed)
    assert {one.split(":")[-1] for one in published} == {"4242/tcp", "8042/tcp", "11112/tcp"}
    assert all(one.startswith("127.0.0.1:") for one in published)


def test_compose_names_every_version_and_the_gpu_by_its_profile(composed: str) -> None:
    images = re.findall(r"image: (\S+)", composed)
    assert len(images) == 3
    assert all(re.fullmatch(r"[\w/.-]+:[\w.-]*\d[\w.-]*", image) and not image.endswith("latest") for image in images)
    gpu = composed[composed.index("  medseg-gpu:") : composed.index("  orthanc:")]
    cpu = composed[composed.index("  medseg-cpu:") : composed.index("  medseg-gpu:")]
    assert re.search(r"profiles:\s+- gpu", gpu) and re.search(r"profiles:\s+- cpu", cpu)
    assert re.search(r"capabilities:\s+- gpu", gpu) and "devices" not in cpu
    assert (ROOT / ".env").read_text().splitlines()[-1] == "COMPOSE_PROFILES=cpu"
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))
    assert set(re.findall(r"args:\s+(\w+):", gpu)) <= arguments


def test_orthanc_and_medseg_know_each_other() -> None:
    """Under the names, AE titles and ports that each has in the other's file and in docker-compose.yml."""
    settings = load_settings(DEPLOY / "medseg.toml")
    orthanc = json.loads((DEPLOY / "orthanc.json").read_text("utf-8"))
    modality = orthanc["DicomModalities"]["medseg"]
    assert (modality["AET"], modality["Port"]) == (settings.gateway.ae_title, settings.gateway.port)
    (peer,) = settings.peers
    assert (peer.ae_title, peer.port) == (orthanc["DicomAet"], orthanc["DicomPort"])
    assert settings.gateway.admits(peer.ae_title, "192.0.2.1", lambda _: ()) and not settings.gateway.allow_any_caller
    services = re.findall(r"^  ([\w-]+):$", COMPOSE[COMPOSE.index("services:") :], re.M)
    assert peer.host in services
    assert f"aliases: [{modality['Host']}]" in COMPOSE
    assert settings.gateway.host == "0.0.0.0"
    assert re.search(rf"^EXPOSE {settings.gateway.port}$", DOCKERFILE, re.M)
    assert f"http://127.0.0.1:{settings.gateway.http_port}/readyz" in DOCKERFILE
    kept = re.search(r"^VOLUME (\S+)$", DOCKERFILE, re.M)
    assert kept and f"medseg:{kept[1]}" in COMPOSE
    assert settings.gateway.spool.is_relative_to(kept[1])
    assert settings.gateway.database.startswith(f"sqlite:///{kept[1]}/")


def test_mounted_and_copied_files_are_there() -> None:
    mounted = re.findall(r"- \./(\S+):\S+:ro", COMPOSE)
    assert sorted(set(mounted)) == ["deploy/medseg.toml", "deploy/orthanc.json", "deploy/route.lua"]
    copied = [source for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M) for source in line.split()[:-1]]
    admitted = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in [*mounted, *copied]:
        assert (ROOT / name).exists(), name
    assert sorted(admitted) == sorted(copied)
