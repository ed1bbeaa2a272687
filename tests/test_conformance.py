"""docs/conformance.md says what the code does: its tables are made of the code's own tables.

python -m tests.test_conformance        writes the tables into the document again
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydicom import DataElement, Dataset, dcmread
from pydicom.uid import UID, KeyObjectSelectionDocumentStorage, RLELossless, RTStructureSetStorage
from pynetdicom.sop_class import _STORAGE_CLASSES

from gateway.decide.rules import IMAGES
from gateway.dicomweb.dataset_json import keyword_of
from gateway.dimse import door, scp, scu, store
from gateway.dimse.commitment import COMMIT, UNCOMPRESSED
from gateway.dimse.contexts import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from gateway.dimse.status import Status
from gateway.ledger.deliveries import LAST_ASK
from gateway.retry import MOST_COPIES, POLICIES, STORE_STATUSES, WEB_STATUSES, Fault, Limit
from gateway.settings.model import GatewaySettings
from gateway.web.dicomweb.app import make_dicomweb
from gateway.web.dicomweb.attributes import INSTANCE, SERIES, STUDY
from gateway.web.dicomweb.search import CLASSES, MODALITIES
from medseg.dicom.decode import PLUGINS
from medseg.results.identity import ResultKey
from medseg.results.modules import _PATIENT_AND_STUDY as COPIED
from medseg.results.provenance import Provenance
from medseg.results.report import write_report
from medseg.results.seg import LABELMAP_STORAGE, SegWriter
from medseg.results.statement import Statement, write_rejection, write_statement
from tests.gateway.phantoms import phantom
from tests.medseg.results.stacks import SEGMENTS, blobs, feed, findings, made, make_result, make_stack

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "conformance.md"

MEANINGS = {
    Status.SUCCESS: "the instance and its entry are on disk",
    Status.PROCESSING_FAILURE: "anything unforeseen",
    Status.SOP_CLASS_NOT_SUPPORTED: "the command names another SOP class than the presentation context",
    Status.NOT_AUTHORIZED: "not used at present: who may not store is not let in",
    Status.OUT_OF_RESOURCES: "no room on the disk, or it cannot be written; the same instance may be sent later",
    Status.DATA_SET_MISMATCH: "SOP class or instance of the data set is not the one of the command",
    Status.TRANSFER_SYNTAX_NOT_SUPPORTED: "by STOW-RS alone: a transfer syntax that the table above does not have",
    Status.CANNOT_UNDERSTAND: "the data set is empty or malformed, or a UID is missing or malformed",
}
DECODERS = {
    "pillow": "Pillow or GDCM",
    "gdcm": "GDCM",
    "pyjpegls": "CharLS",
    "pylibjpeg": "OpenJPEG",
    "pydicom": "pydicom",
}
KEYWORDS = {str(one): keyword for keyword, one in _STORAGE_CLASSES.items()}


def table(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(titles), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def name(uid: str) -> str:
    known = UID(uid).name
    return KEYWORDS[uid] if known == uid else known  # of a later edition than pydicom's dictionary


def transfer_syntaxes() -> str:
    return table(
        ("transfer syntax", "UID", "pixels decoded by"),
        (
            (name(one), f"`{one}`", DECODERS[PLUGINS[one]] if one in PLUGINS else _undecoded(one))
            for one in TRANSFER_SYNTAXES
        ),
    )


def _undecoded(syntax: UID) -> str:
    return "not decoded: stored only" if syntax.is_encapsulated else "no decoder needed"


def sop_classes() -> str:
    return table(
        ("SOP class", "UID", "segmented"),
        (
            (name(one), f"`{one}`", "where a rule says so" if one in IMAGES else "")
            for one in sorted(STORAGE_SOP_CLASSES)
        ),
    )


def statuses() -> str:
    return table(
        ("status", "name", "when"),
        ((f"{one:04X}H", one.name.replace("_", " ").lower(), MEANINGS[one]) for one in Status),
    )


def answers() -> str:
    return table(
        ("answer of the peer", "counts as", "then"),
        ((_range(first, last), fault or "stored", _then(fault)) for first, last, fault in STORE_STATUSES),
    )


def web_answers() -> str:
    def shown(first: int, last: int) -> str:
        return "any other" if (first, last) == (0, 999) else f"{first}" if first == last else f"{first} to {last}"

    return table(
        ("answer of the service", "counts as", "then"),
        ((shown(first, last), fault or "stored", _then(fault)) for first, last, fault in WEB_STATUSES),
    )


def _range(first: int, last: int) -> str:
    if (first, last) == (0x0000, 0xFFFF):
        return "any other"
    return f"{first:04X}H" if first == last else f"{first:04X}H to {last:04X}H"


def _then(fault: Fault | None) -> str:
    if fault is None:
        return "asked whether it is safe"
    policy = POLICIES[fault]
    return (
        "sent again, at growing intervals" if policy.limit is Limit.TIME else "a dead letter, for a person to look at"
    )


def rejections() -> str:
    return table(
        ("reason", "result", "source", "reason code"),
        (
            (one.name.replace("_", " ").lower(), "1 permanent" if one.value[0] == 1 else "2 transient", *one.value[1:])
            for one in scp.Rejection
        ),
    )


def parameters() -> str:
    settings, timeouts, sending = GatewaySettings(), scp.AcceptorTimeouts(), scu.TIMEOUTS
    gateway, limits = settings.gateway, settings.limits
    return table(
        ("parameter", "value", "configured by"),
        (
            ("application context", "`1.2.840.10008.3.1.1.1`", ""),
            ("implementation class UID", f"`{store.IMPLEMENTATION_CLASS_UID}`", ""),
            ("implementation version name", f"`{store.IMPLEMENTATION_VERSION_NAME}`", ""),
            ("AE title", f"`{gateway.ae_title}`, and each `called_ae` of a rule", "`gateway.ae_title`, `rule.when`"),
            ("port", gateway.port, "`gateway.port`"),
            ("address", f"`{gateway.host}`", "`gateway.host`"),
            ("largest PDU received", f"{scp.MAXIMUM_PDU} bytes", ""),
            ("associations accepted at once", f"{limits.associations}, of one caller {limits.per_caller}", "`limits`"),
            ("association request, and a PDU that was begun", f"{timeouts.acse_s:g} s", ""),
            ("pause inside a message", f"{timeouts.dimse_s:g} s", ""),
            ("association without a message", f"{timeouts.network_s:g} s", ""),
            ("connection to a peer", f"{sending.connect_s:g} s", ""),
            ("answer of a peer to an association request", f"{sending.acse_s:g} s", ""),
            ("answer of a peer to a message", f"{sending.dimse_s:g} s", ""),
            ("asynchronous operations window", "not negotiated: one operation at a time", ""),
            ("requests for storage commitment before C-FIND", LAST_ASK - 1, ""),
            ("times that one peer stores an object it does not know afterwards", MOST_COPIES, ""),
            ("association request", f"{door.LONGEST_REQUEST} bytes", ""),
            ("connections of a receiver without a request yet", door.WAITING, ""),
        ),
    )


def resources() -> str:
    """What is there by DICOMweb, from what clients read of it."""
    nothing: Any = None
    paths = make_dicomweb(nothing, nothing).openapi()["paths"]
    return table(
        ("method", "path", "what"),
        (
            (method.upper(), f"`{path}`", operation["description"].splitlines()[0].rstrip("."))
            for path, methods in paths.items()
            for method, operation in methods.items()
        ),
    )


def searched() -> str:
    """What is searched for, and answered with, by level."""
    levels = {"study": (*STUDY, MODALITIES, CLASSES), "series": SERIES, "instance": INSTANCE}
    return table(
        ("level", "attributes"), ((level, ", ".join(map(keyword_of, names))) for level, names in levels.items())
    )


def proposed() -> str:
    """What we propose as SCU: SOP classes of results as they are written, and the services."""
    uncompressed = ", ".join(map(name, UNCOMPRESSED))
    written = (*results(made(), modality="CT"), *statements("a", phantom()[0]))
    others = (RTStructureSetStorage, KeyObjectSelectionDocumentStorage, LABELMAP_STORAGE)
    classes = sorted({*(str(one.SOPClassUID) for one in written), *others})
    syntaxes = {LABELMAP_STORAGE: name(RLELossless)}
    return table(
        ("SOP class", "UID", "transfer syntaxes"),
        ((name(one), f"`{one}`", syntaxes.get(one, uncompressed)) for one in (*classes, COMMIT, scu.FIND, scu.VERIFY)),
    )


@cache
def results(provenance: Provenance, **phantom: Any) -> tuple[Dataset, Dataset]:
    """A SEG and an SR as medseg writes them."""
    with tempfile.TemporaryDirectory() as folder:
        stack = make_stack(**phantom)
        labels = blobs(stack.shape)
        seg, report = Path(folder) / "seg.dcm", Path(folder) / "sr.dcm"
        feed(SegWriter(seg, provenance), stack, SEGMENTS, labels)
        write_report(
            report, make_result(stack, SEGMENTS, labels), findings(stack, SEGMENTS, labels), provenance, with_seg=True
        )
        return dcmread(seg), dcmread(report)


def statements(name: str, header: Dataset) -> tuple[Dataset, Dataset]:
    """A report in words and a rejection as medseg writes them."""
    image = {header.SeriesInstanceUID: [(header.SOPClassUID, header.SOPInstanceUID)]}
    key, at = ResultKey(name * 64), datetime(2026, 5, 6, 7, 8, len(name))
    said = Statement(key, header.StudyInstanceUID, header, at, (name,), image, name, evidence=image)
    with tempfile.TemporaryDirectory() as folder:
        report, note = Path(folder) / "sr.dcm", Path(folder) / "ko.dcm"
        write_statement(report, said)
        write_rejection(note, said)
        return dcmread(report), dcmread(note)


def attributes_of_statement(number: int) -> str:
    """Those of the report (0) or the rejection (1)."""
    other = phantom(1, Modality="MR")[0]
    return _attributes(statements("a", phantom()[0])[number], statements("bb", other)[number])


def attributes(number: int) -> str:
    """Those of the SEG (0) or the SR (1): what is the same in results of different images stands there as a value."""
    changed = made("b", bundle="b", bundle_version="2", bundle_digest="1" * 64, made_at=datetime(2026, 5, 6, 7, 8, 9))
    one = results(made(), modality="CT")[number]
    other = results(changed, modality="MR", shape=(5, 12, 14), seed=1, number=3)[number]
    return _attributes(one, other)


def _attributes(one: Dataset, other: Dataset) -> str:
    assert list(one.keys()) == list(other.keys())
    return table(
        ("attribute", "tag", "VR", "value"),
        ((element.name, f"`{element.tag}`", element.VR, _value(element, other[element.tag])) for element in one),
    )


def _value(element: DataElement, other: DataElement) -> str:
    if element.keyword in COPIED:
        return "as in the images; empty where they have none"
    if element.VR == "SQ":
        inside = {nested.name: None for item in element.value for nested in item.iterall()}
        return f"of {', '.join(inside)}" if inside else "no items"
    if element.VR in ("OB", "OW") or element.value != other.value or element.is_empty:
        return ""
    values = [
        UID(one).name if element.VR == "UI" else str(one)
        for one in (element.value if element.VM > 1 else [element.value])
    ]
    return ", ".join(f"`{one}`" for one in values)


TABLES: dict[str, Callable[[], str]] = {
    "transfer syntaxes": transfer_syntaxes,
    "SOP classes": sop_classes,
    "statuses": statuses,
    "answers": answers,
    "web answers": web_answers,
    "rejections": rejections,
    "parameters": parameters,
    "proposed": proposed,
    "resources": resources,
    "searched": searched,
    "SEG": lambda: attributes(0),
    "SR": lambda: attributes(1),
    "reason": lambda: attributes_of_statement(0),
    "rejection": lambda: attributes_of_statement(1),
}
PLACE = re.compile(r"(<!-- table: ([^\n]+) -->\n).*?(<!-- end -->)", re.S)


def filled(text: str) -> str:
    """The document with each of its tables made anew."""
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def test_the_document_has_every_table() -> None:
    assert sorted(found[1] for found in PLACE.findall(DOCUMENT.read_text("utf-8"))) == sorted(TABLES)


@pytest.mark.parametrize("which", TABLES)
def test_a_table_says_what_the_code_does(which: str) -> None:
    (found,) = [one for one in PLACE.finditer(DOCUMENT.read_text("utf-8")) if one[2] == which]
    expected = TABLES[which]()
    assert found[0] == f"{found[1]}{expected}\n{found[3]}", f"python -m {__name__} writes it again"


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text("utf-8")), "utf-8")
