"""PS3.15 Table E.1-1 as dicom-anonymizer has it, in the form of `medseg/deidentify/actions.tsv`.

python -m tests.medseg.deidentify.published > medseg/deidentify/actions.tsv
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pydicom.datadict import keyword_for_tag

EDITION = "2026c"
_HEAD = f"""\
# PS3.15 {EDITION}, Table E.1-1: attributes, and what the basic profile does with each (Table E.1-1a).
# Made by tests/medseg/deidentify/published.py from dicom-anonymizer 2.1.0, which reads the table from the standard's
# text; of it come tags and actions alone. dicom-anonymizer is (c) 2020 Kitware Europe, BSD-2-Clause.
"""
_CODES = {
    "D_TAGS": "D",
    "Z_TAGS": "Z",
    "X_TAGS": "X",
    "U_TAGS": "U",
    "Z_D_TAGS": "Z/D",
    "X_Z_TAGS": "X/Z",
    "X_D_TAGS": "X/D",
    "X_Z_D_TAGS": "X/Z/D",
    "X_Z_U_STAR_TAGS": "X/Z/U*",
}


def published() -> dict[tuple[int, int], str]:
    """Tag -> action. Repeating groups (50xx, 60xx) are left out: we remove them whole."""
    database: Any = import_module(f"dicomanonymizer.dicom_anonymization_databases.dicomfields_{EDITION}")
    return {tag: code for name, code in _CODES.items() for tag in getattr(database, name) if len(tag) == 2}


def text() -> str:
    rows = (
        f"{group:04X}{element:04X}\t{code}\t{keyword_for_tag((group, element))}"
        for (group, element), code in sorted(published().items())
    )
    return _HEAD + "".join(f"{row.rstrip()}\n" for row in rows)


if __name__ == "__main__":
    print(text(), end="")
