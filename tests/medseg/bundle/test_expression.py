"""`$` expressions: what is understood agrees with Python, everything else is refused, and nothing runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medseg.bundle.expression import DEVICE, Dtype, RefusedError, evaluate
from medseg.bundle.safe_config import SafeConfig
from medseg.errors import InvalidBundle

VALUES = {"n": 3, "pixdim": [1.5, 2.0], "name": "image", "high": True, "device": DEVICE, "deep": {"a": [5, {"b": 7}]}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3", 7),
        ("-2 ** 2", -4),
        ("7 // 2 - 7 % 4 / 2", 1.5),
        ("[1.5] * 3", [1.5, 1.5, 1.5]),
        ("(1, 2) + (3,)", (1, 2, 3)),
        ("@name + '_trans'", "image_trans"),
        ("@n * 2 if @high else 0", 6),
        ("@n>2 and not @high or @name == 'image'", True),
        ("@pixdim[1]", 2.0),
        ("@pixdim[-1]", 2.0),
        ("@deep::a::1::b + @deep#a#0", 12),
        ("None", None),
        ("numpy.float32", Dtype("float32")),
        ("torch.long", Dtype("int64")),
        ('torch.device("cuda:0"  if torch.cuda.is_available() else "cpu")', DEVICE),
        ("@name.to(@device)", "image"),
    ],
)
def test_what_real_configurations_write(text: str, expected: Any) -> None:
    config = SafeConfig("b", Path(), {**VALUES, "x": f"${text}"})
    assert config.get("x") == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1 +", "a", "__name__", "@", "@@n", "@n @ 2", "1 2", "\0", "x = 1", "1; 2", "print", "1 if 2"),
        *("f''", "f'{1}'", "b'a'", "...", "1j", "{1: 2}", "{1, 2}", "[*@pixdim]", "@pixdim[0:1]", "(yield)", "await 1"),
        *(
            "'a' * 2.0",
            "[1] + (2,)",
            "'a' + 1",
            "1 < 'a'",
            "None < None",
            "[1] < [2]",
            "1 < 2 < 3",
            "1 is 1",
            "1 in [1]",
        ),
        *(
            "~1",
            "1 << 2",
            "1 | 2",
            "-'a'",
            "-True",
            "True + 1",
            "not @device",
            "@device + 1",
            "@pixdim['a']",
            "@pixdim[9]",
        ),
        *("1 / 0", "0.0 ** -1", "1e308 * 10", "2 ** 64 ** 2", "9 ** 65", "9" * 30, "9" * 5000, "1e999", "(-1) ** 0.5"),
        *("'%d' % 1", "'a' * 10001", "[0] * 5001 + [0] * 5001", "torch.load", "np.testing", "numpy.float128"),
        *("torch.device('cuda:0').index", "torch.device(@name)", "@name.to(1)", "@name.to(@device, 1)", "@none"),
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    config = SafeConfig("b", Path(), {**VALUES, "x": f"${text}"})
    with pytest.raises(InvalidBundle) as error:
        config.get("x")
    assert error.value.key in ("x", "none")


def test_the_bounds_hold_for_what_references_build() -> None:
    """Doubling a text forty times by references would make a terabyte."""
    doubling: dict[str, Any] = {f"t{i}": f"$@t{i + 1} + @t{i + 1}" for i in range(40)} | {"t40": "a"}
    with pytest.raises(InvalidBundle, match="items"):
        SafeConfig("b", Path(), doubling).get("t0")


NUMBERS = st.integers(-50, 50).map(str) | st.floats(-50, 50, allow_nan=False).map(repr)
ARITHMETIC = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(("+", "-", "*", "/", "//", "%")), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        inner.map(lambda t: f"(-{t})"),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} < {t[2]} else {t[2]})"),
    ),
    max_leaves=12,
)


@given(text=ARITHMETIC)
def test_arithmetic_agrees_with_python(text: str) -> None:
    try:
        found = evaluate(text, VALUES.__getitem__)
    except RefusedError:
        try:
            expected = eval(text)
        except ArithmeticError:
            return
        assert abs(expected) > 2**53 or "nested" in _refusal(text)
    else:
        assert found == eval(text)


def _refusal(text: str) -> str:
    with pytest.raises(RefusedError) as error:
        evaluate(text, VALUES.__getitem__)
    return str(error.value)


ATOMS = st.sampled_from(
    (
        *(
            "1",
            "0",
            "2.5",
            "1e9",
            "10**9",
            "'a'",
            "'%s'",
            "None",
            "True",
            "@n",
            "@pixdim",
            "@deep::a",
            "@device",
            "@none",
        ),
        *(
            "os",
            "torch",
            "np",
            "print",
            "eval",
            "open",
            "reference__0",
            "torch.float32",
            "\uff45val",
            "().__class__",
            "x",
            "...",
        ),
    )
)
SHAPES = (
    *(
        "{}.system({})",
        "{}({})",
        "{}.{}",
        "{}[{}]",
        "{} + {}",
        "{} * {}",
        "{} ** {}",
        "{} % {}",
        "[{}, {}]",
        "({}, {})",
    ),
    *("[{} for x in {}]", "{{{}: {}}}", "(lambda: {})({})", "f'{{{}}}{{{}}}'", "(x := {}) + {}", "{} if {} else 1"),
    *("getattr({}, {})", "{} and {}", "{} < {}", "-{} @ {}", "not {} or {}", "{}.to({})", "torch.device({}, {})"),
)
PYTHON = st.recursive(
    ATOMS,
    lambda inner: st.tuples(st.sampled_from(SHAPES), inner, inner).map(
        lambda t: t[0].format(t[1].strip(".") or "1", t[2])
    ),
    max_leaves=10,
)


@settings(max_examples=400)
@given(text=PYTHON | st.text(max_size=60))
@example("[[0]*9999]*9999")
@example("'\\N{x'")
@example("-" * 700 + "1")
def test_no_text_does_anything_but_give_a_value_or_a_refusal(text: str) -> None:
    config = SafeConfig("b", Path(), {**VALUES, "x": f"${text}"})
    with nothing_happens():
        try:
            value = config.get("x")
        except InvalidBundle:
            return
    assert value is None or isinstance(value, bool | int | float | str | list | tuple | dict | Dtype) or value is DEVICE


WATCHED = ("import", "exec", "os.", "subprocess.", "socket.", "ctypes.", "open", "shutil.", "pickle.")
_events: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and event.startswith(WATCHED):
        _events.append(event)


sys.addaudithook(_hook)


@contextmanager
def nothing_happens() -> Iterator[None]:
    """No import, no code, no process, no file: as the interpreter's audit events (PEP 578) tell."""
    global _events
    _events = []
    try:
        yield
        assert _events == []
    finally:
        _events = None
