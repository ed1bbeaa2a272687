"""What is said of an input, without what its header and its files are called.

Messages of ours hold no value of a patient's module, but UIDs, and descriptions in quotation marks; messages about
files hold their names. What a result says keeps its sentence, without these; an error about files is told by its kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag

from medseg.deidentify.actions import Action, action
from medseg.deidentify.burned_in import BurnedIn
from medseg.deidentify.pseudonyms import Pseudonyms
from medseg.dicom.headers import look
from medseg.errors import ChannelsMissing, GeometryRefused, InputError, MedsegError, Unforeseen, VerificationFailed

_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
_SHORTEST: Final = 4  # a value of fewer letters is part of many words
_GONE: Final = (Action.REMOVE, Action.EMPTY, Action.DUMMY)
_IN_WORDS: Final = (BurnedIn, GeometryRefused)
_ABOUT_INPUT: Final = (InputError, Unforeseen, VerificationFailed)
Error = TypeVar("Error", bound=MedsegError)


@dataclass(frozen=True)
class Words:
    """Sentences about an input. values: of its header, that must not be told."""

    pseudonyms: Pseudonyms
    values: tuple[str, ...] = ()

    @classmethod
    def about(cls, pseudonyms: Pseudonyms, header: Dataset) -> Words:
        """Sentences about images with such a header."""
        gone = (tag for tag in header.keys() if not tag.is_private and action(tag) in _GONE)  # noqa: SIM118
        texts = {text for tag in gone for text in look(header).texts(keyword_for_tag(tag)) if len(text) >= _SHORTEST}
        return cls(pseudonyms, tuple(sorted(texts, key=len, reverse=True)))

    def told(self, text: str) -> str:
        """A sentence of ours without values and UIDs."""
        text = _QUOTED.sub("'...'", text)
        for value in self.values:
            text = re.sub(re.escape(value), "...", text, flags=re.IGNORECASE)
        return self.pseudonyms.in_text(text)

    def all_told(self, texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(map(self.told, texts))


def unnamed(error: Error, pseudonyms: Pseudonyms) -> Error:
    """An error of the same kind that names no file and no UID of the source.

    One about slices keeps its words, which are geometry, and so does one about pixels; another about the input is told
    by its kind.
    """
    subject = getattr(error, "series_uid", "") or getattr(error, "study_uid", "")
    if isinstance(error, _ABOUT_INPUT) and not isinstance(error, _IN_WORDS):
        said = " ".join((type(error).__doc__ or error.code).partition("\n\n")[0].split())
        text = f"series or study {pseudonyms.uid(subject)}: {said}" if subject else said
    else:
        text = Words(pseudonyms).told(str(error))
    other = type(error).__new__(type(error), text)  # whose constructor makes its text of what must not be told
    vars(other).update(vars(error))
    if isinstance(other, ChannelsMissing):
        other.channels = tuple((name, tuple(map(pseudonyms.uid, uids)), fits) for name, uids, fits in other.channels)
    return other
