"""`report.html`: whole, by itself, of what the tables say, and never larger than a page."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.cohort.report import MOST_PICTURES, report_page
from medseg.cohort.summary import Volumes, courses, read_summary
from medseg.cohort.tables import FAILURES, RESULTS

MARKUP = "<script>alert('x')</script>&\"'"


def output(folder: Path, rows: list[dict[str, Any]], failures: list[dict[str, Any]] | None = None) -> Path:
    """An output with these tables; what a row does not say is as of any result."""
    usual = {"item": "one", "bundle": "b", "segment": 1, "label": "Liver", "volume_ml": 1.0, "confidence": 0.9}
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns, table in (("results", RESULTS, [usual | row for row in rows]), ("failures", FAILURES, failures)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns), restval="")
            writer.writeheader()
            writer.writerows(table or [])
    return folder


class Page(HTMLParser):
    """What a page is made of; a tag that closes another than the last one opened fails."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content.decode())
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def cohort(folder: Path, results: int) -> Path:
    """Normal volumes with one that is ten times as large, doubts, two patients with two studies each, failures."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(results):
        row: dict[str, Any] = {"item": f"item{number}", "folder": f"item{number}/1_b", "volume_ml": draw.normal(20, 1)}
        row |= {"volume_ml": 200.0} if number == 7 else {}
        row |= {"flags": "volume;several_pieces"} if number % 5 == 0 else {}
        row |= {"patient": f"p{number // 2}", "day": 1000 + 30 * (number % 2)} if number < 4 else {}
        rows.append(row)
        thumbnail = folder / row["folder"] / "thumbnail.jpg"
        thumbnail.parent.mkdir(parents=True)
        thumbnail.write_bytes(b"\xff\xd8" + b"x" * 100)
    failures = [{"item": "bad", "kind": "failed", "code": "out_of_memory", "message": f"series 1.2: {MARKUP}"}]
    return output(folder, rows, failures)


def test_the_page_stands_by_itself_and_can_be_read_by_all(tmp_path: Path) -> None:
    content = report_page(cohort(tmp_path, 40))
    page = Page(content)
    assert not page.of("script") and not page.of("link") and not re.search(rb"https?:|@import|url\(", content)
    assert all(image["alt"] and (image["src"] or "").startswith("data:image/jpeg;base64,") for image in page.of("img"))
    assert all(svg["aria-label"] and svg["role"] == "img" for svg in page.of("svg"))
    assert len(page.of("caption")) == len(page.of("table")) > 0
    assert all(head["scope"] in ("col", "row") for head in page.of("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    assert b"prefers-color-scheme: dark" in content and b'lang="en"' in content


def test_what_stands_in_it(tmp_path: Path) -> None:
    text = report_page(cohort(tmp_path, 40)).decode()
    numbers = dict(re.findall(r"<dt>([^<]+)</dt><dd>(\d+)</dd>", text))
    assert numbers == {"Studies and volumes": "41", "Results": "40", "With a doubt": "8", "Failed": "1", "Refused": "0"}
    outliers = text[text.index("<h2>Outliers") : text.index("<h2>Least sure")]
    assert re.findall(r'<th scope="row">(item\d+)', outliers) == ["item7"]
    assert 'alt="A slice of item7 ' in outliers
    assert "30</td>" in text[text.index("<h2>Change over time") :]
    assert "several pieces" in text and "out of memory" in text


def test_what_others_named_is_text(tmp_path: Path) -> None:
    rows = [
        {"item": MARKUP, "label": MARKUP, "bundle": MARKUP, "flags": MARKUP, "patient": MARKUP, "day": day}
        for day in (1, 2)
    ]
    rows[1]["folder"] = "../.."
    page = Page(report_page(output(tmp_path, rows, [dict.fromkeys(FAILURES, MARKUP)])))
    assert not page.of("script")


def test_nothing_yet_is_a_page_too(tmp_path: Path) -> None:
    assert b"no bundle" in report_page(output(tmp_path, []))


def test_a_large_cohort_makes_no_large_page(tmp_path: Path) -> None:
    rows = [
        {
            "item": f"i{number}",
            "folder": f"i{number}",
            "volume_ml": 1 + number % 7,
            "flags": "f",
            "patient": "p",
            "day": number,
        }
        for number in range(3000)
    ]
    page = report_page(output(tmp_path, rows))
    assert page.count(b"<figure>") <= 3 * MOST_PICTURES + 1 and len(page) < 300_000
    assert f"{MOST_PICTURES} of 3000".encode() in page


@pytest.mark.parametrize("values", [[3.0], [0.0] * 9, [1.0] * 8 + [9.0], list(range(20))])
def test_spreads(values: list[float]) -> None:
    volumes = Volumes()
    volumes.ml.extend(values)
    spread = volumes.spread()
    assert spread.quartiles == pytest.approx(np.percentile(values, (25, 50, 75)))
    assert (spread.least, spread.most, spread.not_found) == (min(values), max(values), values.count(0))
    assert abs(spread.score(9.0)) > 3.5 if len(values) == 9 and max(values) == 9 else True


def test_courses_are_of_days(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"patient": "p", "day": day, "volume_ml": ml, "folder": f"{day}"} for day, ml in ((9, 3.0), (2, 2.0))
    ]
    rows += [{"patient": "q", "day": 1, "folder": "q"}, {"day": "", "folder": "r"}]
    rows += [{"patient": "z", "day": day, "volume_ml": day - 1, "folder": f"z{day}"} for day in (1, 2)]
    both = ((day, side) for day in (1, 3) for side in (1, 2))
    rows += [{"patient": "t", "day": day, "volume_ml": day * side, "folder": f"{day}/{side}_b"} for day, side in both]
    output(tmp_path, rows)
    left, right, first, second = courses(read_summary(tmp_path / "results.csv", tmp_path / "failures.csv"))
    assert [(one.name, one.ml) for one in (left, right)] == [("1_b", (1.0, 3.0)), ("2_b", (2.0, 6.0))]
    assert (first.patient, first.days, first.ml, first.change) == ("p", (0, 7), (2.0, 3.0), 0.5)
    assert (second.patient, second.change) == ("z", None)
