"""What an object of a result is: its form, and which stack of its series it is of."""

from __future__ import annotations

from typing import Any, Self

from sqlalchemy import ColumnElement, or_

from gateway.settings.model import ResultForm


class ObjectKind(str):
    """ "seg", "sr"; "seg.2" for the second stack of a series."""

    __slots__ = ()

    @classmethod
    def of(cls, form: ResultForm, stack: int) -> Self:
        """stack: counted from 1."""
        return cls(form if stack == 1 else f"{form}.{stack}")

    @property
    def is_segmentation(self) -> bool:
        """Whether it is what the other objects of its result refer to."""
        return self.partition(".")[0] == ResultForm.SEG


def is_segmentation(kind: Any) -> ColumnElement[bool]:
    """The same of a column, as a condition."""
    return or_(kind == ResultForm.SEG, kind.startswith(f"{ResultForm.SEG}."))
