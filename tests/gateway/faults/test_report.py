"""`docs/reliability.md` says what is tested and what was measured."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.gateway.faults.report import BEGIN, DOCUMENT, END, FIGURES, table, with_table

HERE = Path(__file__).parent
ROOT = DOCUMENT.parents[1]


@pytest.mark.parametrize("case", range(1, 17))
def test_each_failure_case_is_in_the_document_and_has_a_test(case: int) -> None:
    (row,) = re.findall(rf"^\| {case} \|.*$", DOCUMENT.read_text(), re.M)
    name = row.rsplit("`", 2)[1]
    file = ROOT / name if "/" in name else HERE / name
    functions = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert any(function.startswith(f"test_case_{case:02}_") for function in functions)


def test_the_table_of_runs_is_made_of_their_figures() -> None:
    text = DOCUMENT.read_text()
    assert text == with_table(text, table(FIGURES))
    assert BEGIN in text and END in text
