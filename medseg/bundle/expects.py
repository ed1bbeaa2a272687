"""What a series must be for a bundle to fit, from the metadata's "medseg" key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydicom.datadict import tag_for_keyword

from medseg.allowed import Allowed, flag
from medseg.bundle.bundle import DESCRIBED, Expects, PixelCheck
from medseg.bundle.schema import Reader
from medseg.conditions.prefer import PREFERENCE
from medseg.conditions.subjects import BODY_PART, KEYWORDS, SUBJECTS, names_somebody
from medseg.conditions.terms import ANY, NOT, Language, Path, Term, form_of, read_when

_NO_ONE: Final = "expected what says how an image was made, not who is on it"
_OWN: Final = ("modality", BODY_PART, "series_description", "fov_mm", "values", "min_slices", "prefer", "pixels")
_REFUSE: Final = ("flag", "refuse")
_DEFAULT: Final = Allowed(f'true, false or "{DESCRIBED}"', lambda value: value == DESCRIBED or flag(value))


def _bars(subject: str) -> str:
    """What is told of a series that does not fit names nobody."""
    return _NO_ONE if names_somebody(subject) or subject in ("PatientBirthDate", "PatientBirthTime") else ""


LANGUAGE: Final = Language(of_bundles=True, bars=_bars)


def read_expects(own: Reader, modality: str | None) -> Expects:
    """modality: what is expected where the metadata does not say. Raises InvalidBundle."""
    if "expects" not in own:
        own.ignore("expects")
        return Expects(modality=(modality,) if modality else ())
    entry = own.reader("expects")
    others = {name: entry.content[name] for name in entry.content if name not in _OWN and _is_condition(name)}
    expects = Expects(
        modality=tuple(text.upper() for text in entry.texts("modality")),
        body_part=tuple(text.upper() for text in entry.texts("body_part")),
        series_description=entry.maybe_text("series_description"),
        fov_mm=entry.ranges("fov_mm", 3),
        values=entry.range("values"),
        min_slices=entry.integer("min_slices", 1),
        when=read_terms(entry, others, LANGUAGE),
        prefer=tuple(read_preference(entry, text) for text in entry.texts("prefer")),
        pixels=_pixels(entry),
    )
    entry.ignore(*others, NOT, ANY, *KEYWORDS, *SUBJECTS)
    entry.done()
    return expects


def read_default(own: Reader) -> tuple[bool, bool]:
    """Whether the bundle is meant of several that fit; and whether only where a series' description says so."""
    described = own.content.get("default") == DESCRIBED
    return own.read("default", _DEFAULT, False), described


def _is_condition(name: str) -> bool:
    return name in (NOT, ANY) or name in KEYWORDS or tag_for_keyword(name) is not None or form_of(name) is not None


def _pixels(entry: Reader) -> PixelCheck | None:
    if "pixels" not in entry:
        entry.ignore("pixels")
        return None
    own = entry.reader("pixels")
    check = PixelCheck(
        values=own.range("values"),
        fov_mm=own.ranges("fov_mm", 3),
        air=own.range("air"),
        air_below=own.number("air_below", PixelCheck.air_below),
        dim=own.range("dim"),
        refuse=own.text("else", _REFUSE[0]) == _REFUSE[1],
    )
    if own.content.get("else", _REFUSE[0]) not in _REFUSE:
        raise own.wrong("else", f"expected {' or '.join(_REFUSE)}, found {own.content['else']!r:.80}")
    for name, share in (("air", check.air), ("dim", check.dim)):
        if share is not None and not 0.0 <= share[0] <= share[1] <= 1.0:
            raise own.wrong(name, f"expected two shares from 0 to 1, found {list(share)}")
    if not any((check.values, check.air, check.dim, check.fov_mm)):
        raise entry.wrong("pixels", "expected values, fov_mm, air or dim")
    own.done()
    return check


def read_terms(entry: Reader, table: Mapping[str, Any], language: Language) -> tuple[Term, ...]:
    """Conditions of an object of a bundle. Raises InvalidBundle."""

    def refuse(key: Path, why: str) -> None:
        name = "::".join(str(part) for part in key)
        raise entry.wrong(name, why)

    return read_when(dict(table), (), refuse, language)


def read_preference(entry: Reader, text: str) -> str:
    """Raises InvalidBundle."""
    try:
        return PREFERENCE.read(text)
    except ValueError:
        raise entry.wrong("prefer", f"expected {PREFERENCE.allowed}, found {text!r}") from None
