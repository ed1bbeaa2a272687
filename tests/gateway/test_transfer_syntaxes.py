"""A study in each transfer syntax that peers send, through a running `medseg serve`: the result is that of plain data.

Files are made by DCMTK, OpenJPEG and OpenJPH, and sent by DCMTK where its storescu can propose their syntax, else by
pynetdicom.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import encapsulate
from pynetdicom import AE, _config

from medseg.dicom.phantom import Ellipsoid, make_series, write_series
from tests.gateway.pacs import FakePacs, listening
from tests.gateway.receiving import CAREFUL, CT, STORESCU, data_set_of
from tests.gateway.running import Serving, serving
from tests.medseg.bundle.zoo import spleen_like
from tests.peers import missing, require
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

PROCESS_14 = """
[[TransferSyntaxes]]
[Process14]
TransferSyntax1 = JPEGLossless:Non-hierarchical:Process14
[[PresentationContexts]]
[Images]
PresentationContext1 = CTImageStorage\\Process14
[[Profiles]]
[Default]
PresentationContexts = Images
"""
Make = Callable[[Path, Path], object]


def by(*command: str) -> Make:
    """A program of DCMTK that makes a file of another."""
    return lambda source, target: subprocess.run(
        [require(command[0]), *command[1:], source, target], check=True, capture_output=True
    )


def by_pydicom(syntax: str, **options: Any) -> Make:
    def make(source: Path, target: Path) -> None:
        dataset = dcmread(source)
        dataset.compress(syntax, generate_instance_uid=False, **options)
        dataset.save_as(target)

    return make


def by_openjph(syntax: str, *options: str) -> Make:
    """High-throughput JPEG 2000, from the encoder that its authors wrote."""

    def make(source: Path, target: Path) -> None:
        dataset = dcmread(source)
        image, codestream = target.with_suffix(".pgm"), target.with_suffix(".j2c")
        header = f"P5 {dataset.Columns} {dataset.Rows} {2**dataset.BitsStored - 1}\n"
        image.write_bytes(header.encode() + dataset.pixel_array.astype(">u2").tobytes())
        command = [require("ojph_compress"), "-i", image, "-o", codestream, *options]
        subprocess.run(command, check=True, capture_output=True)
        _replace_pixels(dataset, syntax, codestream.read_bytes()).save_as(target)
        image.unlink()
        codestream.unlink()

    return make


def broken(source: Path, target: Path) -> None:
    """What no decoder reads, under the name of a syntax that is known."""
    _replace_pixels(dcmread(source), uid.HTJ2KLossless, bytes(range(256))).save_as(target)


def _replace_pixels(dataset: Dataset, syntax: str, frame: bytes) -> Dataset:
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


@dataclass(frozen=True)
class Syntax:
    """options: what DCMTK's storescu must be told to propose it; None where it cannot, and pynetdicom sends."""

    uid: str
    make: Make
    options: tuple[str, ...] | None
    lossless: bool = True
    bits: int = 12


REVERSIBLE = ("-reversible", "true")
SYNTAXES = {
    "explicit": Syntax(uid.ExplicitVRLittleEndian, by("dcmconv", "+te"), ("-xe",)),
    "implicit": Syntax(uid.ImplicitVRLittleEndian, by("dcmconv", "+ti"), ("-xi",)),
    "big endian": Syntax(uid.ExplicitVRBigEndian, by("dcmconv", "+tb"), ("-xb",)),
    "deflated": Syntax(uid.DeflatedExplicitVRLittleEndian, by("dcmconv", "+td"), ("-xd",)),
    "RLE": Syntax(uid.RLELossless, by("dcmcrle"), ("-xr",)),
    "JPEG lossless": Syntax(uid.JPEGLossless, by("dcmcjpeg", "+el"), ("-xf", "process14.cfg", "Default")),
    "JPEG lossless SV1": Syntax(uid.JPEGLosslessSV1, by("dcmcjpeg", "+e1"), ("-xs",)),
    "JPEG baseline": Syntax(uid.JPEGBaseline8Bit, by("dcmcjpeg", "+eb"), ("-xy",), lossless=False, bits=8),
    "JPEG extended": Syntax(uid.JPEGExtended12Bit, by("dcmcjpeg", "+ee"), ("-xx",), lossless=False),
    "JPEG-LS lossless": Syntax(uid.JPEGLSLossless, by("dcmcjpls", "+el"), ("-xt",)),
    "JPEG-LS near-lossless": Syntax(uid.JPEGLSNearLossless, by("dcmcjpls", "+en"), ("-xu",), lossless=False),
    "JPEG 2000 lossless": Syntax(uid.JPEG2000Lossless, by_pydicom(uid.JPEG2000Lossless), ("-xv",)),
    "JPEG 2000": Syntax(uid.JPEG2000, by_pydicom(uid.JPEG2000, j2k_cr=[4]), ("-xw",), lossless=False),
    "HTJ2K lossless": Syntax(
        uid.HTJ2KLossless, by_openjph(uid.HTJ2KLossless, *REVERSIBLE, "-prog_order", "LRCP"), None
    ),
    "HTJ2K lossless RPCL": Syntax(
        uid.HTJ2KLosslessRPCL, by_openjph(uid.HTJ2KLosslessRPCL, *REVERSIBLE, "-prog_order", "RPCL"), None
    ),
    "HTJ2K": Syntax(uid.HTJ2K, by_openjph(uid.HTJ2K, "-qstep", "0.001"), None, lossless=False),
}
BROKEN = Syntax(uid.HTJ2KLossless, broken, None)


def study(folder: Path, seed: int, syntax: Syntax) -> list[Path]:
    """The same noisy phantom as any other, with UIDs of its own, in a transfer syntax."""
    organ = Ellipsoid((0.0, 0.0, 0.0), (25.0, 20.0, 15.0), 90.0)
    series = make_series(spacing_mm=(3.0, 1.5, 1.5), shape=(12, 48, 48), objects=[organ], seed=seed)
    noise = np.random.default_rng(0)
    for image in series:
        values = image.pixel_array + noise.integers(0, 30, (48, 48))
        if syntax.bits == 8:
            image.BitsAllocated, image.RescaleSlope, values = 8, "8", values // 8
        image.BitsStored, image.HighBit = syntax.bits, syntax.bits - 1
        image.PixelData = values.astype(np.uint8 if syntax.bits == 8 else "<u2").tobytes()
    sources = write_series(series, folder / "source")
    (folder / "made").mkdir()
    files = [folder / "made" / source.name for source in sources]
    for source, target in zip(sources, files, strict=True):
        syntax.make(source, target)
    return files


def send(port: int, files: list[Path], syntax: Syntax) -> None:
    if syntax.options is None:
        ae = AE("SENDER")
        ae.add_requested_context(CT, syntax.uid)
        association = ae.associate("127.0.0.1", port, ae_title="MEDSEG", evt_handlers=CAREFUL)
        assert [association.send_c_store(file).Status for file in files] == [0x0000] * len(files)
        association.release()
        return
    if not Path(STORESCU).exists():
        missing("storescu")
    folder = files[0].parent
    (folder / "process14.cfg").write_text(PROCESS_14)
    command = [STORESCU, *syntax.options, "-aec", "MEDSEG", "127.0.0.1", str(port), *map(str, files)]
    environment = os.environ | {"TCP_NODELAY": "1"}
    sent = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert sent.returncode == 0, sent.stderr


SETTINGS = """
[complete]
quiet_s = 1
[deliver]
commitment = false
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
[[rule]]
bundle = "{bundle}"
send_to = ["pacs"]
"""


@dataclass
class Gateway:
    """A running service, and what was sent to it: files by the name of their syntax."""

    service: Serving
    pacs: FakePacs
    files: dict[str, list[Path]]

    def labels(self, name: str) -> dict[tuple[float, int], NDArray[Any]]:
        """Its segmentation's frames by z (mm) and segment."""
        (seg,) = wait_for(f"the SEG of {name}", lambda: [s for s in self.pacs.of("SEG") if self.is_of(s, name)])
        frames = zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True)
        return {
            (
                float(groups.PlanePositionSequence[0].ImagePositionPatient[2]),
                int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber),
            ): frame
            for frame, groups in frames
        }

    def is_of(self, seg: Dataset, name: str) -> bool:
        return bool(seg.StudyInstanceUID == self.study_uid(name))

    def study_uid(self, name: str) -> str:
        return str(dcmread(self.files[name][0], stop_before_pixels=True).StudyInstanceUID)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A service that was sent all of them."""
    bundle = spleen_like(tmp_path_factory.mktemp("bundles") / "spleen_test", smooth=True)
    files: dict[str, list[Path]] = {}
    with (
        listening(FakePacs()) as pacs,
        serving(tmp_path_factory.mktemp("serve"), SETTINGS.format(port=pacs.port, bundle=bundle)) as service,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)  # as the file has it
        for seed, (name, syntax) in enumerate((SYNTAXES | {"broken": BROKEN}).items()):
            files[name] = study(tmp_path_factory.mktemp("study"), seed, syntax)
            send(service.port, files[name], syntax)
        yield Gateway(service, pacs, files)


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_study_gives_the_same_result_in_every_syntax(gateway: Gateway, name: str) -> None:
    found, plain = gateway.labels(name), gateway.labels("explicit")
    assert plain
    if SYNTAXES[name].lossless:
        assert found.keys() == plain.keys()
        assert all(np.array_equal(found[key], plain[key]) for key in plain)
    else:
        both = sum(int((found[key] & plain[key]).sum()) for key in found.keys() & plain.keys())
        voxels = sum(int(frame.sum()) for frames in (found, plain) for frame in frames.values())
        assert 2 * both / voxels > 0.8


@pytest.mark.parametrize("name", [*SYNTAXES, "broken"])
def test_instances_are_kept_as_sent(gateway: Gateway, name: str) -> None:
    query = f"SELECT * FROM instance WHERE study_uid = '{gateway.study_uid(name)}'"
    rows = {row.sop_instance_uid: row for row in gateway.service.rows(query)}
    assert len(rows) == len(gateway.files[name])
    for file in gateway.files[name]:
        sent = dcmread(file)
        row = rows[sent.SOPInstanceUID]
        stored = gateway.service.folder / "spool" / row.path
        assert row.transfer_syntax_uid == sent.file_meta.TransferSyntaxUID
        assert dcmread(stored) == sent
        if name != "deflated":  # storescu deflates anew
            assert data_set_of(stored) == data_set_of(file)


def test_what_cannot_be_decoded_is_said_clearly(gateway: Gateway) -> None:
    def failed() -> list[Any]:
        query = f"SELECT * FROM job WHERE study_uid = '{gateway.study_uid('broken')}' AND state = 'failed'"
        return gateway.service.rows(query)

    (job,) = wait_for("the job to fail", failed)
    assert job.error_code == "undecodable_pixels"
    shown = [json.loads(line) for line in gateway.service.medseg("jobs", "--json").splitlines()]
    (told,) = [one["error"] for one in shown if one["id"] == job.id]
    assert "HTJ2K" in told or "High-Throughput JPEG 2000" in told
    assert any(Path(file).stem and dcmread(file).SOPInstanceUID in told for file in gateway.files["broken"])
