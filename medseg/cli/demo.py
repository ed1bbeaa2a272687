"""`medseg demo`: the main job on a real MRI, from DICOM series to verified DICOM-SEG and a picture.

The MNI152 T1 template, which the package nilearn carries, stands in for a patient: the left and right hippocampus
regions are cut out and written as two MR series of one study. Other packages go on with that study (entry point group
`medseg.demos`).
"""

from __future__ import annotations

import shutil
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli import console
from medseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
    from pydicom import Dataset

DEMOS = "medseg.demos"  # entry points: functions that take the study, the results made of it, and a folder to write to
TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
BUNDLE = "hippocampus_t1_unet3d"
SIDES = {"left": -28.0, "right": 28.0}  # x in mm, RAS: the patient's left is negative
CENTRE_YZ_MM = (-20.0, -14.0)
REGION_MM = (36, 52, 36)


def demo(
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything the demo writes.")] = Path("demo"),
) -> None:
    """Segment the hippocampus of the MNI152 brain: DICOM series in, verified DICOM-SEG, report and picture out.

    Then the same once more by DICOM: a small PACS sends the study to `medseg serve`, and has the results back.
    """
    from medseg.bundle.catalog import find_bundle
    from medseg.dicom.sources import read_series
    from medseg.inference.settings import Settings
    from medseg.job.folder import Format
    from medseg.job.plan import plan
    from medseg.job.run import run

    study = folder / "study"
    if study.exists():
        shutil.rmtree(study)
    images = write_study(study)
    console.say(f"wrote {images} MR images of two series to {study}")
    matched = plan(read_series(study), (find_bundle(BUNDLE),))
    for refused in matched.refused:
        raise refused.error
    for job in matched.jobs:
        name = job.stack.series.description
        with console.interruptible() as cancelled, console.progress(name) as report:
            outcome = run(
                job,
                folder / "results",
                frozenset({Format.SEG, Format.SR, Format.NIFTI, Format.PNG}),
                settings=Settings(),
                overwrite=True,
                on_progress=report,
                cancelled=cancelled,
            )
        record = outcome.record
        console.show(f"{name}: {outcome.folder}")
        for segment in record["segments"]:
            console.show(f"  {segment['label']}: {segment['volume_ml']:.2f} ml")
        whole = sum(segment["volume_ml"] for segment in record["segments"])
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in record["timings_s"].items())
        console.show(f"  together: {whole:.2f} ml")
        console.show(f"  SEG verified; seconds: {stages}")
    for extension in entry_points(group=DEMOS):
        extension.load()(study, folder / "results", folder / extension.name)
    console.show(f"Look at {folder}/results/*/overlay.png; then try: medseg infer YOUR_STUDY/")


def write_study(folder: Path) -> int:
    """Write the two regions as DICOM MR series; gives the number of images."""
    from medseg.dicom.phantom import write_series

    return sum(len(write_series(images, folder / side)) for side, images in regions())


def regions() -> Iterator[tuple[str, list[Dataset]]]:
    """The regions about the left and right hippocampus, 36 x 52 x 36 mm, as MR instances of one study."""
    from medseg.dicom.phantom import volume_to_series

    voxels, affine = _template()
    for number, (side, x) in enumerate(SIDES.items(), start=1):
        cut, placed = _cut(voxels, affine, (x, *CENTRE_YZ_MM))
        yield (
            side,
            volume_to_series(
                cut,
                placed,
                "MR",
                f"T1 MNI152 hippocampus region {side}",
                number=number,
                patient_id="MNI152",
                body_part="BRAIN",
            ),
        )


def _template() -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The MNI152 T1 (i, j, k) along x, y, z, and its RAS affine."""
    import nibabel
    import numpy as np

    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise UsageError("the demo needs the MRI that the package nilearn carries: pip install 'medseg[demo]'")
    image = nibabel.load(Path(spec.origin).parent / TEMPLATE)
    return np.asarray(image.dataobj), np.asarray(image.affine)


def _cut(
    voxels: NDArray[np.uint8], affine: NDArray[np.float64], centre_mm: tuple[float, float, float]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The region about a point (RAS mm) as axial slices: (k, j, i), with its LPS affine.

    Radiological order: columns run to the patient's left, rows to the back, slices to the head.
    """
    import numpy as np

    from medseg.dicom.nifti import LPS_TO_RAS

    low = np.array(centre_mm) - np.array(REGION_MM) / 2.0
    begin = np.rint(np.linalg.solve(affine[:3, :3], low - affine[:3, 3])).astype(int)
    x, y, z = (slice(first, first + size) for first, size in zip(begin, REGION_MM, strict=True))
    # RAS axes x, y run against LPS columns and rows: both are turned round
    cut = voxels[x, y, z][::-1, ::-1, :].transpose(2, 1, 0)
    corner = np.array([x.stop - 1, y.stop - 1, z.start])
    placed = np.eye(4)
    placed[:3, 0] = affine[:3, :3] @ [0.0, 0.0, 1.0]
    placed[:3, 1] = affine[:3, :3] @ [0.0, -1.0, 0.0]
    placed[:3, 2] = affine[:3, :3] @ [-1.0, 0.0, 0.0]
    placed[:3, 3] = affine[:3, :3] @ corner + affine[:3, 3]
    return np.ascontiguousarray(cut), LPS_TO_RAS @ placed
