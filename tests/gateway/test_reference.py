"""docs/settings.md and the help of `medseg serve` are what the code makes, and true: every example is read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli import reference
from gateway.cli.reference import Key, keys
from gateway.settings.model import GROUPS, LISTS, WORDS
from gateway.settings.read import read_settings
from gateway.settings.when import WHEN
from medseg.allowed import forms_of
from medseg.cli.app import make_app
from medseg.conditions.subjects import KEYWORDS, SUBJECTS, VRS
from medseg.conditions.terms import form_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"
KINDS = GROUPS | LISTS | WORDS
ALL = [(table, key) for table, kind in KINDS.items() for key in keys(kind)]


def test_the_document_is_what_the_code_makes() -> None:
    assert DOCUMENT.read_text("utf-8") == reference.document(), reference.__doc__


def test_every_key_that_can_be_read_is_told_and_no_other() -> None:
    for kind in KINDS.values():
        told = {key.name for key in keys(kind)}
        assert told == set(forms_of(kind)) | ({"when"} if kind is LISTS["rule"] else set())


@pytest.mark.parametrize(("table", "key"), ALL, ids=[f"{table}.{key.name}" for table, key in ALL])
def test_every_key_has_its_meaning_and_an_example_that_is_read(table: str, key: Key) -> None:
    assert key.means and key.allowed and key.default and key.example not in ("", "null")
    if key.name in forms_of(KINDS[table]):
        forms_of(KINDS[table])[key.name].read(tomllib.loads(f"x = {key.example}")["x"])


@pytest.mark.parametrize("example", [*reference.EXAMPLES.values(), *reference.BY_VR.values()])
def test_every_example_of_a_condition_is_read(example: str) -> None:
    assert read_settings(f"[[rule]]\nwhen = {{ {example} }}\n", Path("/etc")).rules[0].when


def test_examples_are_of_what_they_stand_for() -> None:
    assert {*KEYWORDS, *SUBJECTS, *WHEN.subjects, "not", "any"} == set(reference.EXAMPLES)
    for vrs, form in VRS:
        (name,) = tomllib.loads(reference.BY_VR[min(vrs)])
        assert form_of(name) is form


def test_the_help_has_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    help_text = CliRunner().invoke(make_app(), ["serve", "--help"]).stdout
    assert "--allow-any-caller" in help_text
    for key in (key for _, key in ALL):
        assert re.search(rf"^  {key.name} = {re.escape(key.example)}\n .*default: ", help_text, re.M)
    for example in (*reference.EXAMPLES.values(), *reference.BY_VR.values()):
        assert f"\n  {example}\n" in help_text


def test_defaults_are_those_in_force() -> None:
    settings: Any = read_settings("", Path("/etc"))
    for table in GROUPS:
        group = getattr(settings, table)
        for key in keys(GROUPS[table]):
            if key.default.startswith("`") and key.name not in ("spool", "database", "allow_callers"):
                assert tomllib.loads(f"x = {key.default.strip('`')}")["x"] == getattr(group, key.name)
