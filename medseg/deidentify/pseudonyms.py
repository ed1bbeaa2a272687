"""What stands for a UID, a patient, a name: by HMAC-SHA-256 under the user's key.

The same key gives the same in every run, on every machine, for every study of a cohort; another key gives others, and
nobody can go back, or try values, without it. Each kind of thing has a name of its own under the key, so that a study
UID and a patient's ID of the same text have nothing in common.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pydicom import Dataset

from medseg.deidentify.dates import moved
from medseg.dicom.headers import look

_STANDARD: Final = "1.2.840.10008."  # UIDs that PS3.6 registers: classes, transfer syntaxes, well-known frames, codes
_DAYS: Final = (366, 3652)  # dates go back by one to ten years
_LETTERS: Final = 16
# Of four parts and more, or as those that are made of a UUID (2.25.N): versions and numbers have fewer.
_UID_IN_TEXT = re.compile(r"(?<![\d.])[0-2](?:(?:\.\d+){3,}|\.\d+\.\d{6,})(?![\d.]*\d)")


@dataclass(frozen=True)
class Pseudonyms:
    """What stands for what, under a key."""

    key: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """What tells this key from others, and nothing of it."""
        return self._digest("fingerprint", "").hex()[:16]

    @property
    def salt(self) -> str:
        """What makes keys of results others than those of who has another key. Never shown: with it, and the images,
        anyone could tell whose a result is."""
        return self._digest("result", "").hex()

    def uid(self, uid: str) -> str:
        """Of a UID, in the form of PS3.5 B.2; itself where it is the standard's, or empty."""
        plain = uid.strip(" \0")
        if not plain or plain.startswith(_STANDARD):
            return plain
        return f"2.25.{int.from_bytes(self._digest('uid', plain)[:16])}"

    def patient_id(self, patient: str) -> str:
        """Of a patient, by what identifies them."""
        return f"P{base64.b32encode(self._digest('patient', patient)).decode('ascii')[:_LETTERS]}"

    def name(self, text: str) -> str:
        """Of a file or folder, or whatever else a person named."""
        return f"N{base64.b32encode(self._digest('name', text)).decode('ascii')[:_LETTERS]}"

    def mark(self, text: str) -> str:
        """A digest of something that stands in no result as it is (64 hexadecimal digits)."""
        return self._digest("mark", text).hex()

    def in_text(self, text: str) -> str:
        """A text with each UID in it replaced."""
        return _UID_IN_TEXT.sub(lambda match: self.uid(match[0]), text)

    def person(self, header: Dataset) -> Person:
        """Whose an object is: by PatientID, else by name and date of birth, else by the study."""
        view = look(header)
        patient = view.text("PatientID")
        if not patient:
            others = "|".join(view.text(keyword) for keyword in ("PatientName", "PatientBirthDate"))
            patient = f"named {others}" if others != "|" else f"study {view.text('StudyInstanceUID')}"
        first, last = _DAYS
        days = first + int.from_bytes(self._digest("days", patient)[:8]) % (last - first)
        return Person(self.patient_id(patient), -days, self.uid)

    def _digest(self, kind: str, text: str) -> bytes:
        return hmac.digest(self.key, f"{kind}\0{text}".encode("utf-8", "backslashreplace"), "sha256")


@dataclass(frozen=True)
class Person:
    """What stands for a patient. days: by which all their dates are moved. uid: what stands for a UID."""

    pseudonym: str
    days: int
    uid: Callable[[str], str]

    def date(self, text: str) -> str:
        """A date, or a date and time (DA, DT), moved; empty where it is none."""
        return moved(text, self.days)
