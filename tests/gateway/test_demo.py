"""The gateway's half of `medseg demo` where it cannot come to its end; else see tests/acceptance/test_demo.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli import demo


def test_a_gateway_that_does_not_start_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SETTINGS", "[gateway]\nport = {port}\nno_such_key = true\n")
    for name in ("study", "results"):
        (tmp_path / name).mkdir()
    with pytest.raises(demo.DemoFailed, match=r"serve.log"):
        demo.round_trip(tmp_path / "study", tmp_path / "results", tmp_path / "out")
    assert "no_such_key" in (tmp_path / "out" / "serve.log").read_text()
