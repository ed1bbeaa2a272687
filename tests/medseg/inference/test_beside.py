"""What is put beside is consumed in its order, within the room there is, and whatever goes wrong comes back."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.inference.background import BackgroundConsumer

SOON = 30.0  # seconds


@given(st.lists(st.integers(1, 9)), st.integers(1, 12))
def test_all_is_consumed_in_order(items: list[int], room: int) -> None:
    seen: list[int] = []
    with BackgroundConsumer[int](seen.extend, lambda size: size, room) as beside:
        for item in items:
            beside.put(item)
    assert seen == items


def test_no_more_waits_than_there_is_room_for() -> None:
    put: list[int] = []
    ahead: list[int] = []

    def consume(items: Iterator[int]) -> None:
        ahead.extend(len(put) - n for n in items)

    with BackgroundConsumer[int](consume, lambda _: 1, 2) as beside:
        for n in range(200):
            beside.put(n)
            put.append(n)
    assert max(ahead) <= 3  # one is being consumed, two wait


def test_settled_is_all_that_can_be_consumed() -> None:
    seen: list[int] = []
    with BackgroundConsumer[int](seen.extend, lambda _: 1, 100) as beside:
        for n in range(50):
            beside.put(n)
            if n % 10 == 9:
                beside.settle()
                assert seen == list(range(n + 1))
    assert len(seen) == 50


@pytest.mark.parametrize("how", ["put", "settle", "end"])
def test_an_error_beside_is_raised_here(how: str) -> None:
    def consume(items: Iterator[int]) -> None:
        next(items)
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"), BackgroundConsumer[int](consume, lambda _: 1, 1) as beside:
        beside.put(0)
        if how == "settle":
            beside.settle()
        while how == "put":
            beside.put(0)


def test_an_error_here_ends_what_is_beside() -> None:
    begun, ended = Event(), Event()

    def consume(items: Iterator[int]) -> None:
        for _ in items:
            begun.set()
        ended.set()

    with pytest.raises(KeyError), BackgroundConsumer[int](consume, lambda _: 1, 1) as beside:
        beside.put(0)
        assert begun.wait(SOON)
        raise KeyError
    assert ended.is_set()
