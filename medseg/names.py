"""Names on disk, in addresses and of objects that are made of data.

What a header, a bundle or a file's name says is data: it may be empty, `..`, a path, a thousand letters, or bytes of
no text at all. Whoever makes a name of it asks here, and gets one part of a path, made of an allow-list; what is not
on the list is named by its hash, so that two values never share a name.

    1.2.840.113619.2.55     1.2.840.113619.2.55                       a UID stays as it is
    ../../etc               x0b2f...                                   uid_name
    spleen_ct               spleen_ct                                  file_name
    a b/c                   a_b_c~6f1d...                              file_name
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Final

LONGEST_UID: Final = 64
LONGEST: Final = 100
LONGEST_ON_DISK: Final = 255  # bytes of a name (NAME_MAX of what people mount)
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_PLAIN = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_OTHER = re.compile(r"[^A-Za-z0-9_-]+")
# Names that Windows keeps for devices, with any ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_READABLE = 40


def uid_name(uid: str) -> str:
    """The name of a UID: itself where it is one (PS3.5 9.1: digits and full stops, at most 64), else a hash of it.

    Names hold no letter in two cases, so that file systems that know no case keep them apart, too.
    """
    if len(uid) <= LONGEST_UID and _UID.fullmatch(uid):
        return uid
    return f"x{_hash(uid)[:40]}"


def file_name(text: str) -> str:
    """The name of what a person named: itself where it is plain, else what can be read of it, and a hash.

    No plain name holds `~`, so that none is the name of another text. Plain names may differ by case alone: who puts
    several into one folder compares them by `str.casefold`.
    """
    if len(text) <= LONGEST and _PLAIN.fullmatch(text) and not _DEVICE.fullmatch(text):
        return text
    readable = _OTHER.sub("_", text).strip("_-")[:_READABLE].lower()
    return f"{readable or 'x'}~{_hash(text)[:16]}"


def beside_name(name: str, ending: str) -> str:
    """The name of something beside a file or folder: its name as it stands on disk, and an ending; cut if too long."""
    whole = name + ending
    if len(os.fsencode(whole)) <= LONGEST_ON_DISK:
        return whole
    mark = f"~{_hash(name)[:16]}{ending}"
    raw = os.fsencode(name)
    end = first = LONGEST_ON_DISK - len(os.fsencode(mark))
    while raw[end] & 0xC0 == 0x80 and first - end < 4:  # not inside a letter of UTF-8
        end -= 1
    return os.fsdecode(raw[:end]) + mark


def named_uid(name: str) -> str:
    """The UID that stands for a name: `2.25.` (PS3.5 B.2) and the first 128 bits of its SHA-256."""
    return f"2.25.{int.from_bytes(hashlib.sha256(name.encode()).digest()[:16])}"


#: Who wrote a file of ours (PS3.7 D.3.3.2).
IMPLEMENTATION_CLASS_UID: Final = named_uid("medseg implementation class")


def _hash(text: str) -> str:
    """SHA-256 (hex) of a text, of lone surrogates too."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
