"""One service for all failure cases that leave it running, and a bundle that is quick to run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.faults.faulty import QUICK_TO_LET_GO, Faulty, faulty
from tests.gateway.pacs import FakePacs, listening
from tests.medseg.bundle.zoo import spleen_like
from tests.ports import free_port

TIMES = """
[complete]
quiet_s = 0.5
quiet_late_s = 1
quiet_gap_s = 1
quiet_abort_s = 8
quiet_open_s = 60
"""


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spleen_like(tmp_path_factory.mktemp("bundles") / "spleen_test", smooth=True)


def rules(bundle: Path, port: int) -> str:
    """Every CT series by the bundle, results to a peer on that port."""
    return f"""
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
[[rule]]
name = "held"
when = {{ modality = "CT", series_description = "*hold*" }}
bundle = "{bundle}"
send_to = ["pacs"]
mode = "hold"
[[rule]]
name = "spleen"
when = {{ modality = "CT" }}
bundle = "{bundle}"
send_to = ["pacs"]
"""


@pytest.fixture(scope="session")
def pacs() -> Iterator[FakePacs]:
    with listening(FakePacs()) as peer:
        yield peer


FAKES = ("down", "rejecting", "no_seg", "warning", "busy", "failing", "losing", "reporting", "away")


@pytest.fixture(scope="session")
def fakes() -> dict[str, FakePacs]:
    """Peers that a test lets listen, and misbehave."""
    return {name: FakePacs(port=free_port()) for name in FAKES}


@pytest.fixture(scope="session")
def corrupt(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """A bundle whose weights lost their second half."""
    folder = tmp_path_factory.mktemp("bundles") / "corrupt_test"
    shutil.copytree(bundle, folder)
    weights = folder / "models" / "model.pt"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return folder


@pytest.fixture(scope="session")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, pacs: FakePacs, bundle: Path, corrupt: Path, fakes: dict[str, FakePacs]
) -> Iterator[Faulty]:
    settings = "".join(
        f'[[peer]]\nname = "{name}"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {fake.port}\n'
        for name, fake in fakes.items()
    )
    for description, to in (
        ("to every peer", FAKES[:-2]),
        ("to be reported", FAKES[-2:-1]),
        ("to one away", FAKES[-1:]),
    ):
        settings += (
            f'[[rule]]\nname = "{description}"\nwhen = {{ series_description = "{description}" }}\n'
            f'bundle = "{bundle}"\nsend_to = {list(to)}\n'
        )
    settings += (
        f'[[rule]]\nname = "corrupt"\nwhen = {{ series_description = "by corrupt weights" }}\nbundle = "{corrupt}"\n'
    )
    folder = tmp_path_factory.mktemp("serve")
    with faulty(folder, settings + rules(bundle, pacs.port), QUICK_TO_LET_GO) as running:
        yield running


@pytest.fixture(autouse=True)
def _disarmed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "gateway" in request.fixturenames:
        request.getfixturevalue("gateway").disarm()
