"""Times in the order in which they were."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.dicom.moments import moments

ORDERS = [
    pytest.param(["20260101|235930", "20260101|235955.5", "20260102|000020"], [0, 25.5, 50], id="past midnight"),
    pytest.param(["20260102|000020", "20260101|235930"], [50, 0], id="the date counts, not the place"),
    pytest.param(["|235930", "|000020", "|000100"], [0, 50, 90], id="no dates: the day is a circle"),
    pytest.param(["20260101|235930", "20260101|000020"], [0, 50], id="one date for both sides of midnight"),
    pytest.param(["20260101|080000", "20260101|193000"], [0, 41400], id="a long day"),
    pytest.param(["2026.01.01|10:15:00", "2026.01.01|10:15:01"], [0, 1], id="as written before 1993"),
    pytest.param(["|20260101235930.5+0100", "|20260101225931+0000"], [0, 0.5], id="DT of two zones"),
    pytest.param(["|20260102000010", "|20260101235950"], [20, 0], id="DT past midnight"),
    pytest.param(["|1015", "|10"], [900, 0], id="hours and minutes alone"),
    pytest.param(["15000", "45000.5"], [0, 30000.5], id="milliseconds, as PET has them"),
]


@pytest.mark.parametrize(("texts", "seconds"), ORDERS)
def test_seconds_between(texts: list[str], seconds: list[float]) -> None:
    found = moments(texts)
    assert found is not None
    assert (found - found.min()).tolist() == pytest.approx(seconds, abs=1e-5)


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(["20260101|101500", "|101600"], id="one without its date"),
        pytest.param(["20260101|101500", ""], id="one without a time"),
        pytest.param(["20260101|", "20260101|101500"], id="a date alone"),
        pytest.param(["|ab", "|101500"], id="no time"),
        pytest.param(["|000000", "|080000", "|160000"], id="all round the day: it could begin anywhere"),
        pytest.param(["1", "x"], id="no number"),
        pytest.param(["1", "nan"], id="not a number"),
    ],
)
def test_no_order_is_made_up(texts: list[str]) -> None:
    assert moments(texts) is None


def test_equal_times_are_equal() -> None:
    found = moments(["|101500"] * 3)
    assert found is not None
    assert np.ptp(found) == 0
