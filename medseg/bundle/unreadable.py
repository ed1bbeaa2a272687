"""What torch.load raises for files that are damaged, foreign, or hold more than tensors."""

from __future__ import annotations

import pickle
import zipfile
from typing import Final

UNREADABLE: Final = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    ImportError,
)
