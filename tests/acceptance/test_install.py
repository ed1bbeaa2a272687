"""What is installed is what is here: the wheel carries the shipped bundle and its commands."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_bundles_that_may_not_be_sold_stay_out_of_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    shipped = {Path(one).name for one in settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]}
    licences = {
        folder.name: json.loads((folder / "configs/metadata.json").read_text("utf-8"))["license"]
        for folder in (ROOT / "bundles").iterdir()
    }
    assert shipped == {name for name, licence in licences.items() if "-NC-" not in licence}
    assert all((ROOT / "bundles" / name / "LICENSE").is_file() for name in licences)


@pytest.mark.slow
def test_a_wheel_finds_its_bundles(tmp_path: Path) -> None:
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    build = [sys.executable, "-m", "pip", "wheel", *quiet, "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("medseg-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    program = (
        "import medseg; from medseg.bundle.catalog import find_bundle; "
        "bundle = find_bundle('hippocampus_t1_unet3d'); print(medseg.__file__); print(bundle.path)"
    )
    assert [one.name for one in (installed / "medseg" / "_bundles").iterdir()] == ["hippocampus_t1_unet3d"]
    out = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); {program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    where, bundle = out.stdout.split()
    assert Path(where).is_relative_to(installed)
    assert Path(bundle) == (installed / "medseg" / "_bundles" / "hippocampus_t1_unet3d").resolve()
