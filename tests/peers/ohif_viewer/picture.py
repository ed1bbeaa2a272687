"""The picture of docs/images/ohif-round-trip.png, and the proof that it shows what medseg sent.

    apt-get install --no-install-recommends chromium
    (cd tests/peers/ohif_viewer && npm install)
    python -m tests.peers.ohif_viewer.picture docs/images/ohif-round-trip.png

The MNI152 study of `medseg demo` goes to Orthanc, from there to medseg, and back as SEG and SR, with the settings of
deploy/. OHIF in a browser then loads both SEGs from Orthanc; its voxels are counted by source instance and segment, and
compared with what highdicom reads in the files that medseg froze.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import highdicom

from medseg.cli.demo import write_study
from tests.acceptance.test_round_trip import confirmed
from tests.peers.ohif_viewer.viewer import viewer
from tests.peers.routed import routed

HERE = Path(__file__).parent
Z_MM = -15  # both segments of both sides are there


def main(picture: Path) -> None:
    """Take the picture. Raises AssertionError where OHIF holds other voxels or names than the files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder / "study")
        with routed(folder) as pair, viewer(pair.orthanc["dicomweb"], Path.home() / ".cache" / "medseg-peers") as url:
            pair.send(sorted((folder / "study").rglob("*.dcm")))
            rows = [row for row in confirmed(pair, 4) if row.kind == "seg"]
            segs = [highdicom.seg.segread(pair.medseg.folder / "spool" / row.path) for row in rows]
            address = f"{url}/segmentation?StudyInstanceUIDs={segs[0].StudyInstanceUID}"
            numbers = sorted(str(seg.SeriesNumber) for seg in segs)
            command = ["node", HERE / "shoot.js", address, picture, str(Z_MM), *numbers]
            shown = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300).stdout)
            expected = [held(seg) for seg in sorted(segs, key=lambda seg: str(seg.SeriesNumber))]
            assert shown == expected, f"OHIF holds {shown}, the files {expected}"


def held(seg: highdicom.seg.Segmentation) -> dict[str, Any]:
    """Labels of segments, and voxels by source instance and segment, as shoot.js gives them."""
    voxels: dict[str, dict[str, int]] = defaultdict(dict)
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = str(groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        number = str(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        voxels[source][number] = int(frame.sum())
    labels = {str(segment.SegmentNumber): segment.SegmentLabel for segment in seg.SegmentSequence}
    return {"labels": labels, "voxels": dict(voxels)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
