"""The `when` of a rule: conditions (`medseg.conditions`), and who sent a series to whom."""

from __future__ import annotations

from typing import Any, Final

from gateway.settings.toml_lines import Key
from medseg.conditions import terms
from medseg.conditions.patterns import EXACT_AE
from medseg.conditions.terms import Language, Report, Term

CALLED_AE, CALLING_AE = "called_ae", "calling_ae"

WHEN: Final = Language({CALLED_AE: EXACT_AE, CALLING_AE: EXACT_AE})


def read_when(table: Any, key: Key, report: Report) -> tuple[Term, ...]:
    """The terms of a table; what is wrong with it is reported by its key, and left out."""
    return terms.read_when(table, key, report, WHEN)
