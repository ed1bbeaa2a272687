"""Lines of keys, found by a scan that must agree with tomllib."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.settings.toml_lines import NotToml, line_of, parse

ODD = '''\
# [not.a.table]
"top key" = 1
[[rule]]   # first
when = { modality = "MR", "a.b" = 2 }
text = """
[gateway]
port = 1
""\\"""" # = [
more = ["x = [",
  # y = 2
  'z]',
]
[rule.when2]
deep.er = true

[[rule]]
[[rule.sub]]
x = 1
[[rule.sub]]
x = 2
[ "quo ted" . 'b' ]
"k=v" = """a""""
last = 5
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("top key",), 2),
        (("rule", 0), 3),
        (("rule", 0, "when"), 4),
        (("rule", 0, "when", "modality"), 4),
        (("rule", 0, "text"), 5),
        (("rule", 0, "more"), 9),
        (("rule", 0, "when2"), 13),
        (("rule", 0, "when2", "deep"), 14),
        (("rule", 0, "when2", "deep", "er"), 14),
        (("rule", 1), 16),
        (("rule", 1, "sub", 0, "x"), 18),
        (("rule", 1, "sub", 1, "x"), 20),
        (("quo ted", "b"), 21),
        (("quo ted", "b", "k=v"), 22),
        (("quo ted", "b", "last"), 23),
        (("rule", 1, "absent"), 16),
        (("absent",), None),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines(key: tuple[str | int, ...], line: int | None, newline: str) -> None:
    values, lines = parse(ODD.replace("\n", newline))
    assert values["rule"][0]["when"] == {"modality": "MR", "a.b": 2}
    assert line_of(lines, key) == line


def test_not_toml_says_where() -> None:
    with pytest.raises(NotToml) as caught:
        parse("a = 1\nb = ]\n")
    assert caught.value.line == 2
    assert "line" not in str(caught.value)


words = st.text(alphabet="ab.=#[]{}\"' \t", max_size=6)
keys = st.one_of(st.from_regex(r"[A-Za-z0-9_-]{1,4}", fullmatch=True), words.map(lambda word: f'"{_escaped(word)}"'))
values = st.recursive(
    st.one_of(
        st.integers(-9, 9).map(str),
        words.map(lambda word: f'"{_escaped(word)}"'),
        words.map(lambda word: f'"""{_escaped(word)}\n{_escaped(word)}"""'),
        words.map(lambda word: "'" + word.replace("'", "") + "'"),
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: "[ # [\n" + ",\n".join(items) + "\n]"),
    max_leaves=4,
)


def _escaped(word: str) -> str:
    return word.replace('"', '\\"').replace("\t", "\\t")


@hypothesis_settings(deadline=None)
@given(st.lists(st.tuples(keys, values, st.integers(0, 2)), max_size=8))
def test_every_key_is_found_where_it_was_written(entries: list[tuple[str, str, int]]) -> None:
    text, expected = "", {}
    for key, value, blank in entries:
        text += '# = [ "\n' * blank
        ((name, _),) = tomllib.loads(f"{key} = 0").items()
        if (name,) in expected:
            continue
        expected[(name,)] = text.count("\n") + 1
        text += f'{key} = {value}  # ] """\n'
    found: tuple[dict[str, Any], Any] = parse(text)
    assert found[0] == tomllib.loads(text)
    assert found[1] == expected
