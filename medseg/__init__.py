"""medseg: streaming segmentation of DICOM studies into DICOM-SEG.

What a program needs of it can be imported from here (docs/python.md); each name is loaded when it is first asked for.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "Bundle",
    "Evaluation",
    "Format",
    "Job",
    "LabelSpool",
    "LabelVolume",
    "MedsegError",
    "Outcome",
    "Refused",
    "SegmentationResult",
    "Series",
    "Settings",
    "Stack",
    "StackSource",
    "StudyPlan",
    "__version__",
    "evaluate",
    "find_bundle",
    "load_bundle",
    "plan",
    "plan_nifti",
    "read_studies",
    "read_study",
    "run",
    "segment",
]

__version__ = "0.1.0"

# torch multiplies by MKL, whose products may have other last bits at another address (a window in another batch, a
# slice that came later) unless it is told, before its first one.
os.environ.setdefault("MKL_CBWR", "AUTO")

if TYPE_CHECKING:
    from medseg.bundle.bundle import Bundle
    from medseg.bundle.catalog import find_bundle
    from medseg.bundle.load import load_bundle
    from medseg.dicom.series import Series, Stack, StackSource
    from medseg.dicom.studies import read_studies, read_study
    from medseg.errors import MedsegError
    from medseg.inference.labels import SegmentationResult
    from medseg.inference.planes import LabelSpool
    from medseg.inference.segment import segment
    from medseg.inference.settings import Settings
    from medseg.job.folder import Format
    from medseg.job.plan import Job, Refused, StudyPlan, plan, plan_nifti
    from medseg.job.run import Outcome, run
    from medseg.results.volume import LabelVolume
    from medseg.training.evaluate import Evaluation, evaluate
else:
    _HOMES = {
        "Bundle": "medseg.bundle.bundle",
        "Evaluation": "medseg.training.evaluate",
        "Format": "medseg.job.folder",
        "Job": "medseg.job.plan",
        "LabelSpool": "medseg.inference.planes",
        "LabelVolume": "medseg.results.volume",
        "MedsegError": "medseg.errors",
        "Outcome": "medseg.job.run",
        "Refused": "medseg.job.plan",
        "SegmentationResult": "medseg.inference.labels",
        "Series": "medseg.dicom.series",
        "Settings": "medseg.inference.settings",
        "Stack": "medseg.dicom.series",
        "StackSource": "medseg.dicom.series",
        "StudyPlan": "medseg.job.plan",
        "evaluate": "medseg.training.evaluate",
        "find_bundle": "medseg.bundle.catalog",
        "load_bundle": "medseg.bundle.load",
        "plan": "medseg.job.plan",
        "plan_nifti": "medseg.job.plan",
        "read_studies": "medseg.dicom.studies",
        "read_study": "medseg.dicom.studies",
        "run": "medseg.job.run",
        "segment": "medseg.inference.segment",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:  # so that `from medseg import errors` goes on to the module
            raise AttributeError(f"module 'medseg' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
