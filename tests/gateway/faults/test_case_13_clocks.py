"""Case 13: a restart during the quiet time, steps of the clock, daylight saving time.

Quiet times run by the monotonic clock, and start anew after a restart; what waits by the wall clock goes along with it.
"""

from __future__ import annotations

import signal

import pytest

from tests.gateway.faults.faulty import Faulty, store_all
from tests.gateway.pacs import SEG, SR, FakePacs, listening
from tests.gateway.phantoms import new_phantom
from tests.waiting import wait_for

HOUR_S = 3600.0
QUIET_S = 3.0


@pytest.mark.parametrize(
    "step_s",
    [
        pytest.param(HOUR_S, id="forward", marks=pytest.mark.slow),
        pytest.param(-HOUR_S, id="back"),
        pytest.param(-30 * 24 * HOUR_S, id="a month back", marks=pytest.mark.slow),
    ],
)
def test_case_13_the_wall_clock_steps_in_the_quiet_time(gateway: Faulty, pacs: FakePacs, step_s: float) -> None:
    """As NTP does it, or a person; daylight saving time does not: the clock counts from 1970 in UTC."""
    series = new_phantom()
    assert store_all(gateway.port, series[:4]) == [0] * 4
    with gateway.wall_clock_set(step_s):
        assert store_all(gateway.port, series[4:]) == [0] * 4
        assert gateway.series_row(series).state == "arriving"  # no hour has passed
        gateway.complete(series)
        assert gateway.series_row(series).complete_by == "quiet"
        assert gateway.ended(series).state == "done"
        assert len(gateway.jobs(series)) == 1
        study = series[0].StudyInstanceUID
        wait_for("the result at the peer", lambda: any(one.StudyInstanceUID == study for one in pacs.of("SR")))


def test_case_13_the_wall_clock_steps_back_while_a_delivery_waits(gateway: Faulty, fakes: dict[str, FakePacs]) -> None:
    """What was to be tried again in seconds is not tried again an hour later."""
    series, peer = new_phantom(SeriesDescription="to one away"), fakes["away"]  # which is not there yet
    assert store_all(gateway.port, series) == [0] * 8
    gateway.complete(series)
    assert gateway.ended(series).state == "done"
    wait_for("a failure", lambda: any(row.failures for row in gateway.deliveries(series)))
    with gateway.wall_clock_set(-HOUR_S), listening(peer, (SEG, SR)):
        began = gateway.wall_clock()

        def there() -> bool:
            gateway.leap(1)
            return {row.state for row in gateway.deliveries(series)} == {"stored"}

        wait_for("the result at the peer", there)
        assert gateway.wall_clock() - began < HOUR_S / 2


@pytest.mark.slow
def test_case_13_a_restart_in_the_quiet_time(gateway: Faulty) -> None:
    """It starts anew: nobody could send meanwhile."""
    series = new_phantom(Modality="OT")
    assert store_all(gateway.port, series) == [0] * 8
    gateway.leap(QUIET_S - 1)
    assert gateway.series_row(series).state == "arriving"
    gateway.stop(signal.SIGKILL)
    gateway.start()
    assert gateway.series_row(series).state == "arriving"
    gateway.complete(series)
    assert gateway.series_row(series).complete_by == "quiet"
