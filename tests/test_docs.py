"""Documentation that cannot drift: commands, options and keys named in it exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from gateway.settings.read import load_settings
from medseg.cli.app import make_app
from medseg.dicom.reason import Reason

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("bundles/*/docs/README.md"))]

#: What may stand before a command: a prompt, whose command it is, where it lies.
SHELL = re.compile(r"^(\$ )?(runuser -u \w+ -- )?(/opt/medseg/bin/)?(?=medseg )|^\$ ")


def commands() -> dict[str, set[str]]:
    """Options of each command, by its words ("bundles list")."""
    found: dict[str, set[str]] = {}

    def walk(command: object, words: tuple[str, ...]) -> None:
        children = getattr(command, "commands", {})
        for name, child in children.items():
            walk(child, (*words, name))
        if not children:
            found[" ".join(words)] = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {
                "--help",
                "-h",
            }

    walk(get_command(make_app()), ())
    return found


def mentioned(document: Path) -> list[str]:
    """Command lines of medseg in code blocks and code spans, line continuations joined."""
    text = document.read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.S)
    lines = [SHELL.sub("", line.strip()) for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(medseg [^`\n]+)`", text)
    return [line.split("  #")[0].strip() for line in lines if re.match(r"medseg [a-z]", line)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_named_in_documents_exist(document: Path) -> None:
    known = commands()
    for line in mentioned(document):
        words = shlex.split(line.replace("…", "").split(" > ")[0].split(" | ")[0])[1:]
        for name in re.split(r"\|", words[0]):
            match = next((key for key in (f"{name} {words[1] if len(words) > 1 else ''}", name) if key in known), None)
            group = any(key.startswith(f"{name} ") for key in known)
            assert match or group, f"{document.name}: {line}: no such command"
            if match:
                unknown = {word for word in words if word.startswith("-") and len(word) > 1} - known[match]
                assert not unknown, f"{document.name}: {line}: no option {unknown}"


def test_help_of_every_command_has_text() -> None:
    assert isinstance(make_app(), typer.Typer)
    assert {"infer", "inspect", "train", "evaluate", "doctor", "demo"} <= set(commands())


def test_geometry_document_names_every_reason() -> None:
    text = (ROOT / "docs" / "geometry.md").read_text("utf-8")
    assert not [reason for reason in Reason if f"`{reason}`" not in text]


def test_settings_in_documents_are_valid(tmp_path: Path) -> None:
    blocks = [block for one in DOCUMENTS for block in re.findall(r"```toml\n(.*?)```", one.read_text("utf-8"), re.S)]
    assert blocks
    for block in blocks:
        (tmp_path / "medseg.toml").write_text(block, "utf-8")
        load_settings(tmp_path / "medseg.toml")


def test_links_between_documents_lead_somewhere() -> None:
    targets = [
        (document, target)
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text("utf-8"))
    ]
    assert targets
    assert not [f"{document.name}: {target}" for document, target in targets if not (document.parent / target).exists()]
