"""What an Accept header takes of what is on offer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dicomweb.media import DICOM, DICOM_JSON, JPEG, JSON, OCTETS, PNG, Choice, Offer, choose, media_types

PARTS = Offer(DICOM, multipart=True)
ALONE = Offer(DICOM)


@pytest.mark.parametrize(
    ("accept", "offers", "first"),
    [
        ("", [PARTS, ALONE], Choice(PARTS)),
        ("*/*", [PARTS, ALONE], Choice(PARTS)),
        ("application/dicom", [PARTS, ALONE], Choice(ALONE)),
        ("application/*", [PARTS, ALONE], Choice(ALONE)),
        ('multipart/related; type="application/dicom"', [PARTS, ALONE], Choice(PARTS)),
        (
            "multipart/related;type=application/dicom;transfer-syntax=*",
            [PARTS],
            Choice(PARTS, "*"),
        ),  # OHIF's, no quotes
        ('Multipart/Related; Type="application/dicom"; Transfer-Syntax="1.2"', [PARTS], Choice(PARTS, "1.2")),
        ("multipart/related", [PARTS], Choice(PARTS)),
        ("application/json, application/dicom+json;q=0.9", [Offer(DICOM_JSON), Offer(JSON)], Choice(Offer(JSON))),
        ("image/png;q=0.1, image/jpeg;q=0.2", [Offer(PNG), Offer(JPEG)], Choice(Offer(JPEG))),
        ("image/png;q=0, image/*", [Offer(JPEG)], Choice(Offer(JPEG))),
        ('text/html, multipart/related; type="a,b;c", */*;q=0.1', [ALONE], Choice(ALONE)),
    ],
)
def test_the_best_comes_first(accept: str, offers: list[Offer], first: Choice) -> None:
    assert choose(accept, offers)[0] == first


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", 'multipart/related; type="image/png"', "junk"])
def test_what_takes_nothing(accept: str) -> None:
    assert choose(accept, [PARTS, Offer(PNG), Offer(OCTETS)]) == []


@given(st.text(max_size=60))
def test_any_text_is_read(text: str) -> None:
    for kind in media_types(text):
        assert 0 <= kind.quality <= 1
