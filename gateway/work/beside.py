"""What the jobs on one series share while they are done one after the other: its headers, and its planes."""

from __future__ import annotations

from gateway.ledger.records import JobRow
from medseg.dicom.series import Series
from medseg.inference.arriving.shared import Share, SharedPlanes


class Beside:
    """Of one series at a time. Planes wait on disk until `forget`."""

    def __init__(self) -> None:
        self._of: tuple[str, str | None] | None = None
        self._planes: SharedPlanes | None = None
        self._series: tuple[int, Series] | None = None

    def begin(self, job: JobRow, *, others: bool) -> Share | None:
        """A job's part in what is shared; None where it has all to itself. others: more is to be done with it."""
        if self._of != (job.study_uid, job.series_uid):
            self.forget()
            self._of = job.study_uid, job.series_uid
        if self._planes is None and others and job.series_uid is not None:
            self._planes = SharedPlanes()
        return None if self._planes is None else self._planes.share()

    def keep(self, revision: int, series: Series) -> None:
        """What was read of the series, complete at a revision."""
        self._series = revision, series

    def series(self, revision: int) -> Series | None:
        """What was read before; None where it was not at that revision."""
        return self._series[1] if self._series is not None and self._series[0] == revision else None

    def forget(self) -> None:
        self._of = self._planes = self._series = None
