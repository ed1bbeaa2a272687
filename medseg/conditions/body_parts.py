"""Body parts by what DICOM calls them: terms of BodyPartExamined (PS3.16 Annex L), and codes of anatomic regions.

One body part has had several codes: SNOMED CT's of today and before, and SNOMED RT's. The first stands for all.
"""

from __future__ import annotations

from typing import Final

#: SCT, unless with another scheme.
CODES: Final[dict[str, tuple[str, ...]]] = {
    "ABDOMEN": ("818981001", "113345001", "SRT:T-D4000"),
    "ABDOMENPELVIS": ("818982008",),
    "ADRENAL": ("23451007", "SRT:T-B3000"),
    "ANKLE": ("70258002", "SRT:T-15750"),
    "AORTA": ("15825003", "SRT:T-42000"),
    "ARM": ("40983000", "SRT:T-D8200"),
    "BLADDER": ("89837001", "SRT:T-74000"),
    "BRAIN": ("12738006", "SRT:T-A0100"),
    "BREAST": ("76752008", "SRT:T-04000"),
    "CHEST": ("816094009", "51185008", "SRT:T-D3000"),
    "CHESTABDOMEN": ("416550000", "SRT:R-FAB55"),
    "CHESTABDPELVIS": ("416775004", "SRT:R-FAB56"),
    "CSPINE": ("122494005", "SRT:T-11501"),
    "ELBOW": ("16953009", "SRT:T-15430"),
    "ESOPHAGUS": ("32849002", "SRT:T-56000"),
    "EXTREMITY": ("66019005", "SRT:T-D0300"),
    "EYE": ("81745001", "SRT:T-AA000"),
    "FOOT": ("56459004", "SRT:T-D9700"),
    "GALLBLADDER": ("28231008", "SRT:T-63000"),
    "HAND": ("85562004", "SRT:T-D8700"),
    "HEAD": ("69536005", "SRT:T-D1100"),
    "HEADNECK": ("774007", "SRT:T-D1000"),
    "HEART": ("80891009", "SRT:T-32000"),
    "HIP": ("24136001", "SRT:T-15710"),
    "KIDNEY": ("64033007", "SRT:T-71000"),
    "KNEE": ("72696002", "SRT:T-D9200"),
    "LEG": ("30021000", "SRT:T-D9400"),
    "LIVER": ("10200004", "SRT:T-62000"),
    "LSPINE": ("122496007", "SRT:T-11503"),
    "LUNG": ("39607008", "SRT:T-28000"),
    "NECK": ("45048000", "SRT:T-D1600"),
    "ORBIT": ("363654007", "SRT:T-D14AE"),
    "PANCREAS": ("15776009", "SRT:T-65000"),
    "PELVIS": ("816092008", "12921003", "SRT:T-D6000"),
    "PROSTATE": ("41216001", "SRT:T-92000"),
    "SHOULDER": ("16982005", "SRT:T-D2220"),
    "SKULL": ("89546000", "SRT:T-11100"),
    "SPINE": ("421060004", "SRT:T-D04FF"),
    "SPLEEN": ("78961009", "SRT:T-C3000"),
    "SSPINE": ("54735007", "SRT:T-11AD0"),
    "STOMACH": ("69695003", "SRT:T-57000"),
    "THIGH": ("68367000", "SRT:T-D9100"),
    "THYROID": ("69748006", "SRT:T-B6000"),
    "TSPINE": ("122495006", "SRT:T-11502"),
    "UTERUS": ("35039007", "SRT:T-83000"),
    "WHOLEBODY": ("38266002", "SRT:T-D0010"),
    "WRIST": ("74670003", "SRT:T-15460"),
}
_SAME: Final = {"SNM3": "SRT", "99SDM": "SRT", "SNOMED": "SCT"}  # designators of the same codes


def _coded(code: str) -> str:
    return code if ":" in code else f"SCT:{code}"


_TERMS: Final = {_coded(code): term for term, codes in CODES.items() for code in codes}


def canonical(code: str) -> str:
    """SCHEME:VALUE as the one that stands for all codes of that body part; as it is where none is known."""
    scheme, _, value = code.strip().upper().partition(":")
    same = f"{_SAME.get(scheme, scheme)}:{value}"
    return _coded(CODES[_TERMS[same]][0]) if same in _TERMS else same


def term_of(code: str) -> str:
    """The term of BodyPartExamined; empty where none is known."""
    return _TERMS.get(canonical(code), "")


def code_of(term: str) -> str:
    """SCHEME:VALUE of a term of BodyPartExamined; empty where none is known."""
    codes = CODES.get(term.strip().upper())
    return _coded(codes[0]) if codes else ""
