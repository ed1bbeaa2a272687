"""`report.html`: a cohort on one page that needs nothing else, made of its tables and of results' thumbnails.

However large the cohort is, the page is not: each list has an end, and says how many there are.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path, PurePosixPath
from typing import Final

from medseg.cohort.charts import course, histogram, ml
from medseg.cohort.summary import (
    APART,
    CohortSummary,
    Course,
    SegmentKey,
    Spread,
    TabledResult,
    courses,
    read_summary,
    scores,
)
from medseg.job.folder import THUMBNAIL
from medseg.texts import valid

MOST_SEGMENTS: Final = 150
MOST_ROWS: Final = 40
MOST_PICTURES: Final = 24
_LARGEST_PICTURE: Final = 64 << 10  # bytes

_STYLE: Final = Path(__file__).with_name("report.css").read_text("utf-8")


def report_page(out: Path) -> bytes:
    """The page, from the tables that lie in the output. Raises OSError."""
    summary = read_summary(out / "results.csv", out / "failures.csv")
    spreads = {segment: volumes.spread() for segment, volumes in summary.volumes.items()}
    score = scores(summary, spreads)
    order = sorted(range(len(summary.results)), key=lambda number: -score[number])
    sections = (
        _head(summary),
        _volumes(summary, spreads),
        _failures(summary),
        _flagged(out, summary),
        _furthest(out, summary, order, score),
        _outliers(summary, spreads),
        _least_sure(out, summary),
        _courses(courses(summary)),
    )
    body = "\n".join(section for section in sections if section)
    return valid(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>Cohort report</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    ).encode()


def _head(summary: CohortSummary) -> str:
    bundles = ", ".join(dict.fromkeys(result.bundle for result in summary.results)) or "no bundle"
    counts: Counter[str] = Counter()
    for (kind, _), count in summary.failures.items():
        counts[kind] += count
    numbers = {
        "Studies and volumes": len({result.item for result in summary.results} | summary.failed_items),
        "Results": len(summary.results),
        "With a doubt": sum(bool(result.flags) for result in summary.results),
        "Failed": counts["failed"],
        "Refused": counts["refused"],
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers.items())
    return (
        f"<h1>Cohort report</h1>\n<p>{escape(bundles)}. Made by medseg, for research use: of what "
        f'<code>results.csv</code> and <code>failures.csv</code> say.</p>\n<dl class="numbers">{listed}</dl>'
    )


def _failures(summary: CohortSummary) -> str:
    if not summary.failures:
        return ""
    rows = (
        (escape(kind), escape(_words(code)), str(count), escape(summary.example[kind, code]))
        for (kind, code), count in summary.failures.most_common(MOST_ROWS)
    )
    caption = "What has no result, by reason; refused is what a bundle is not made for"
    return "<h2>Without a result</h2>\n" + _table(caption, ("Kind", "Reason", "#Rows", "*For example"), rows)


def _flagged(out: Path, summary: CohortSummary) -> str:
    flagged = [result for result in summary.results if result.flags]
    if not flagged:
        return ""
    often = Counter(flag for result in flagged for flag in result.flags)
    rows = ((escape(_words(flag)), str(count)) for flag, count in often.most_common(MOST_ROWS))
    table = _table("Doubts, and how many results have each", ("Doubt", "#Results"), rows)
    rare = sorted(flagged, key=lambda one: (min(often[flag] for flag in one.flags), -len(one.flags)))
    pictures = _pictures(out, ((result, ", ".join(map(_words, result.flags))) for result in rare[:MOST_PICTURES]))
    rest = _rest(len(flagged), MOST_PICTURES)
    return f"<h2>Doubts</h2>\n{table}\n<h3>Results with doubts, rare ones first</h3>\n{pictures}{rest}"


def _furthest(out: Path, summary: CohortSummary, order: Sequence[int], score: Sequence[float]) -> str:
    far = [number for number in order if score[number] > APART]
    if not far:
        return ""
    pictures = _pictures(
        out, ((summary.results[number], f"{score[number]:.1f} deviations off") for number in far[:MOST_PICTURES])
    )
    note = f"Results with a volume more than {APART} robust standard deviations from the median of its segment."
    return f"<h2>Outliers</h2>\n<p>{note}</p>\n{pictures}{_rest(len(far), MOST_PICTURES)}"


def _least_sure(out: Path, summary: CohortSummary) -> str:
    known = [result for result in summary.results if result.confidence is not None]
    if not known:
        return ""
    least = sorted(known, key=lambda one: one.confidence or 0.0)[: MOST_PICTURES // 2]
    pictures = _pictures(out, ((result, f"confidence {result.confidence:.3f}") for result in least))
    return f"<h2>Least sure</h2>\n<p>By the mean probability of a result's least certain segment.</p>\n{pictures}"


def _volumes(summary: CohortSummary, spreads: Mapping[SegmentKey, Spread]) -> str:
    if not spreads:
        return ""
    cards = []
    for segment, spread in sorted(spreads.items(), key=lambda one: (one[0].bundle, one[0].number))[:MOST_SEGMENTS]:
        low, median, high = spread.quartiles
        absent = f"; not found in {spread.not_found}" if spread.not_found else ""
        cards.append(
            f"<figure><h3>{escape(segment.label)}</h3>{histogram(segment.label, summary.volumes[segment].ml, spread)}"
            f"<figcaption>{escape(segment.bundle)}: {spread.count} volumes, median {ml(median)} ml, half of them "
            f"{ml(low)} to {ml(high)} ml{absent}</figcaption></figure>"
        )
    note = "Line: median. Band: the middle half. Orange: outliers."
    rest = _rest(len(spreads), MOST_SEGMENTS)
    return f'<h2>Volumes</h2>\n<p class="soft">{note}</p>\n<div class="cards">{"".join(cards)}</div>{rest}'


def _outliers(summary: CohortSummary, spreads: Mapping[SegmentKey, Spread]) -> str:
    far = [
        (spread.score(value), segment, value, number)
        for segment, spread in spreads.items()
        for value, number in zip(summary.volumes[segment].ml, summary.volumes[segment].result, strict=True)
        if abs(spread.score(value)) > APART
    ]
    if not far:
        return ""
    far.sort(key=lambda one: -abs(one[0]))
    rows = (
        (
            escape(summary.results[number].item),
            escape(segment.label),
            ml(value),
            ml(spreads[segment].quartiles[1]),
            f"{score:+.1f}",
        )
        for score, segment, value, number in far[:MOST_ROWS]
    )
    names = ("Item", "Segment", "#Volume, ml", "#Median, ml", "#Deviations")
    return f"{_table('Volumes far from the others', names, rows)}{_rest(len(far), MOST_ROWS)}"


def _courses(listed: Sequence[Course]) -> str:
    if not listed:
        return ""
    rows = (
        (
            escape(one.patient),
            escape(_series(one.name, one.segment.bundle) + one.segment.label),
            course(f"{one.segment.label} of {one.patient}", one.days, one.ml),
            str(one.days[-1]),
            ml(one.ml[0]),
            ml(one.ml[-1]),
            "new" if one.change is None else f"{one.change:+.0%}",
        )
        for one in listed[:MOST_ROWS]
    )
    names = ("Patient", "Segment", "Course", "#Days", "#First, ml", "#Last, ml", "#Change")
    caption = "Patients with studies of several days, by marks of this output alone; those that change most first"
    return f"<h2>Change over time</h2>\n{_table(caption, names, rows)}{_rest(len(listed), MOST_ROWS)}"


def _pictures(out: Path, results: Iterable[tuple[TabledResult, str]]) -> str:
    figures = (
        f"<figure>{_picture(out, result)}<figcaption>{escape(result.item)}"
        f"<br>{escape(_series(PurePosixPath(result.folder).name, result.bundle))}{escape(result.bundle)}"
        f'<br><span class="apart">{escape(why)}</span></figcaption></figure>'
        for result, why in results
    )
    return f'<div class="pictures">{"".join(figures)}</div>'


def _picture(out: Path, result: TabledResult) -> str:
    """A result's thumbnail, within the page."""
    path = out / result.folder / THUMBNAIL
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_PICTURE + 1)
    except OSError:
        content = b""
    if not 0 < len(content) <= _LARGEST_PICTURE:
        return '<div class="none">no picture</div>'
    description = f"A slice of {result.item} with the contours of what {result.bundle} found"
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(description)}" width="240" height="240" src="data:image/jpeg;base64,{data}">'


def _table(caption: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML. A column of numbers begins with #, one of sentences with *; a row begins with its head."""
    kinds = {"#": ' class="number"', "*": ' class="text"'}
    right = [kinds.get(name[0], "") for name in names]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name.lstrip("#*"))}</th>' for name, kind in zip(names, right, strict=True)
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(_row(cells, right) for cells in rows)}</tbody></table></div>"
    )


def _row(cells: Sequence[str], right: Sequence[str]) -> str:
    first, *others = cells
    rest = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(others, right[1:], strict=True))
    return f'<tr><th scope="row">{first}</th>{rest}</tr>'


def _rest(count: int, shown: int) -> str:
    return f'<p class="soft">{shown} of {count}; all are in results.csv.</p>' if count > shown else ""


def _series(folder: str, bundle: str) -> str:
    """Which series a result's folder is of; nothing where it has no number."""
    number = folder.removesuffix(f"_{bundle}")
    return f"series {number}, " if number not in ("", "0", folder) else ""


def _words(code: str) -> str:
    return code.replace("_", " ")
