"""Every key of `medseg.toml`, from the groups themselves: docs/settings.md, and the end of `medseg serve --help`.

python -c 'from gateway.cli.reference import document; print(document(), end="")' > docs/settings.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.tag import Tag

from gateway.settings.model import GROUPS, LISTS, WORDS
from gateway.settings.when import CALLED_AE, CALLING_AE, WHEN
from medseg.allowed import forms_of, shown
from medseg.conditions.subjects import BODY_PART, CONTRAST, KEYWORDS, PLANE, SLICES, SUBJECTS, VRS
from medseg.conditions.terms import form_of
from medseg.dicom.planes import OBLIQUE_DEG


@dataclass(frozen=True)
class Key:
    """A key of a table. allowed, default: in words. example: as it stands in a file."""

    name: str
    allowed: str
    default: str
    means: str
    example: str


def keys(kind: type[Any]) -> Iterator[Key]:
    """The keys of a group, by its fields, their forms, and its docstring."""
    known, means = forms_of(kind), _meanings(kind)
    for one in fields(kind):
        if one.name not in known and one.name != "when":  # which no file has
            continue
        text, default, example = _parted(means[one.name])
        value = None if one.default is MISSING else one.default
        allowed = known[one.name].allowed if one.name in known else "a table of conditions"
        shown = default or ("must be given" if one.default is MISSING else f"`{_as_toml(value)}`")
        yield Key(one.name, allowed, shown, text, example or _as_toml(value))


def document() -> str:
    """docs/settings.md."""
    return "\n".join(_document()) + "\n"


def lines() -> Iterator[str]:
    """For a terminal: a line for each key, and what `when` may ask."""
    yield "Settings: each key with an example (more in docs/settings.md)"
    for name, kind in (GROUPS | LISTS | WORDS).items():
        yield ""
        yield f"{_header(name)}   {_summary(kind)}"
        for key in keys(kind):
            yield f"  {key.name} = {key.example}"
            yield f"      {key.means} {key.allowed.capitalize()}; default: {key.default}".replace("`", "")
    yield ""
    yield "when = { … }   All conditions must hold; a list in place of a value holds where any of it does."
    for name, about, form, example in _conditions():
        yield f"  {example}"
        yield f"      {name}: {about}; {form}".replace("`", "")


def _document() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield "`medseg serve --config medseg.toml` reads these. Every key has a default; without a file all of them hold. A"
    yield "mistake is told with its line, key and allowed form, and a wrong file changes nothing. `medseg doctor`"
    yield "says what is allowed and cannot work. What a reload changes is told in [operations](operations.md)."
    for name, kind in (GROUPS | LISTS | WORDS).items():
        yield ""
        yield f"## `{_header(name)}`"
        yield ""
        yield _summary(kind)
        yield ""
        yield "| key | is | default | means | example |"
        yield "| --- | --- | --- | --- | --- |"
        for key in keys(kind):
            cells = f"`{key.name}`", key.allowed, key.default, key.means, f"`{key.name} = {key.example}`"
            yield f"| {' | '.join(map(_cell, cells))} |"
    yield from _when()


def _when() -> Iterator[str]:
    yield from _WHEN.splitlines()
    for name, about, form, example in _conditions():
        yield f"| {f'`{name}`' if ' ' not in name else name} | {about} | {_cell(form)} | `{example}` |"
    yield from _NOT_KNOWN.splitlines()


_WHEN = """
## `when`

The conditions of a rule. All must hold; a list in place of a value holds where any of it does.

```toml
[[rule]]
name = "scans"
when = { modality = "CT", not = { protocol = "*scout*" }, any = [{ slices = ">=40" }, { plane = "axial" }] }

[[rule]]                          # the same over several lines
name = "thin heads of this year"
[rule.when]
modality = "MR"
StudyDate = "20260101-20261231"
slice_thickness_mm = "<=1.5"
slices = ">=20"
plane = ["axial", "sagittal"]
[rule.when.not]
protocol = ["*localizer*", "*scout*"]
[[rule.when.any]]
calling_ae = "MR01"
[[rule.when.any]]
calling_ae = "PACS"
StationName = "MR01"
```

| key | looks at | value | example |
| --- | --- | --- | --- |"""
_NOT_KNOWN = f"""
Any other key is a DICOM keyword, such as `ImageType` or `MagneticFieldStrength`; of a multi-frame image its functional
groups are asked, too, those of the first frame. Where an attribute has several values, one that is admitted suffices.
Where the images of a series differ, most of them decide ([what a series is](operations.md#what-a-series-is)).

- **Texts** are compared as a whole; `*` stands for anything, upper and lower case are the same; no more is special.
- **Dates and times**: a part of one, such as `"2026"` or `"202601"`, means all that begins so; ranges are written as in
  DICOM (PS3.4 C.2.2.2.5), with both ends in them. A range of times does not go over midnight: `[">=22", "<06"]` does. A
  value that is not written in full counts from its beginning; offsets from UTC are not looked at.
- **Ages** are completed years, or months, weeks, days; without PatientAge, PatientBirthDate and StudyDate say it.
- **Planes** go by ImageOrientationPatient: `oblique` is an image whose normal is {OBLIQUE_DEG:g} degrees or more from
  each axis of the patient; others have the name of the nearest. `"axial 10"` is turned by less than 10 degrees, and
  `"oblique 10"` by no less out of each of the three.
- **Contrast**: an agent that is named, or a volume or dose of it, says `given`; "NONE", "NO" or "N" says `none`. Where
  nothing is said it is `not known`: contrast may have been given all the same. `"not known"` asks for just that.
- **Body parts** are a text, or a code: `"SCT:69536005"`. Codes of SNOMED CT and RT for the same are the same; where an
  image has the text alone, or the code alone, the other is known for the 47 common ones.
- **`not`** holds where not all of its conditions do. None of several: `not = {{ any = [{{ … }}, {{ … }}] }}`.
- **`any`** holds where all conditions of one of its tables do.

**What is not known.** An absent text, AE title or UID is an empty text: it is not `"*scout*"`, so `not` of that holds;
`""` and `"*"` admit it. With a number, date, time, age or plane that is absent or malformed nothing can be compared:

| | holds | fails | not known |
| --- | --- | --- | --- |
| a condition, and the rule | | does not match | does not match |
| `not` of it | fails | holds | not known |
| with others, in `when` or a table | as the others | fails | fails where another fails, else not known |
| in `any` | holds | as the others | holds where another holds, else not known |

So no series is taken for what is not known of it, by a condition or by its opposite. What is not known *yet*, such as
`slices` while a series arrives, takes a rule as far as is known, and is asked again. `medseg rules test study/` shows
each condition with what it found."""


def _conditions() -> Iterator[tuple[str, str, str, str]]:
    """What `when` may ask: name, what that looks at, allowed form, example."""
    about = {
        CALLED_AE: "the AE title that was called; we answer to each that a rule names outside of `not`",
        CALLING_AE: "the AE title of who sent it",
        SLICES: "how many images it has",
        PLANE: "how the images lie",
        CONTRAST: "whether a contrast agent was given, as far as the images say",
        BODY_PART: "BodyPartExamined (0018,0015), AnatomicRegionSequence (0008,2218)",
    }
    for name in (*KEYWORDS, *SUBJECTS, *WHEN.subjects):
        form = form_of(name, WHEN)
        assert form is not None
        keyword = KEYWORDS.get(name, "")
        yield name, about.get(name) or f"{keyword} {Tag(tag_for_keyword(keyword) or 0)}", form.allowed, EXAMPLES[name]
    for vrs, form in VRS:
        yield f"a keyword of VR {', '.join(sorted(vrs))}", "that attribute", form.allowed, BY_VR[min(vrs)]
    yield "not", "conditions", "a table of conditions that do not all hold", EXAMPLES["not"]
    yield "any", "conditions", "a list of tables of conditions, one of which holds", EXAMPLES["any"]


EXAMPLES = {
    "modality": 'modality = ["CT", "MR"]',
    BODY_PART: 'body_part = ["HEAD", "SCT:818981001"]',
    "series_description": 'series_description = "*T1*"',
    "study_description": 'study_description = "*liver*"',
    "protocol": 'protocol = "t1_mprage*"',
    "slice_thickness_mm": 'slice_thickness_mm = "<=1.5"',
    CALLED_AE: 'called_ae = "MEDSEG_STAT"',
    CALLING_AE: 'calling_ae = "CT01"',
    SLICES: 'slices = ">=20"',
    PLANE: 'plane = "axial"',
    CONTRAST: 'contrast = ["given", "not known"]',
    "not": 'not = { series_description = "*scout*" }',
    "any": 'any = [{ body_part = "HEAD" }, { series_description = "*brain*" }]',
}
BY_VR = {
    "CS": 'ImageType = "ORIGINAL"',
    "DS": 'MagneticFieldStrength = "2.5..3.5"',
    "DA": 'StudyDate = ">=20260101"',
    "TM": 'StudyTime = "0700-1859"',
    "DT": 'AcquisitionDateTime = ">=202601011200"',
    "AS": 'PatientAge = ">=18"',
    "AE": 'RetrieveAETitle = "PACS"',
    "UI": 'SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"',
}  # by the first of the VRs that have the same form


def _header(name: str) -> str:
    return f"[[{name}]]" if name in LISTS else f"[{name}]"


def _summary(kind: type[Any]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _meanings(kind: type[Any]) -> dict[str, str]:
    """What a group's docstring says of its keys: `name: text`, further lines indented."""
    said = re.findall(r"^(\w+): (.+(?:\n +.+)*)", (inspect.getdoc(kind) or "").partition("\n\n")[2], re.M)
    return {name: re.sub(r"\s+", " ", text) for name, text in said}


def _parted(text: str) -> tuple[str, str, str]:
    """What a key means, its default in words, its example."""
    text, _, example = text.partition(" Example: ")
    text, _, default = text.partition(" Default: ")
    return text, default.rstrip("."), example


def _as_toml(value: Any) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    return shown(str(value) if isinstance(value, Path) else value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
