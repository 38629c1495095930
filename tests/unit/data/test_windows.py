"""Windows cover every unit, and each unit belongs to the window that shows most around it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.windows import owners, split_windows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=60), st.integers(7, 30), st.integers(0, 40))
def test_windows_cover_all_and_go_on(lengths: list[int], capacity: int, stride: int) -> None:
    windows = split_windows(lengths, capacity, stride)
    assert windows[0][0] == 0
    assert windows[-1][1] == len(lengths)
    for start, end in windows:
        assert sum(lengths[start:end]) <= capacity
    for (start, end), (following, last) in pairwise(windows):
        assert start < following <= end < last
        assert sum(lengths[following:end]) <= min(stride, capacity // 2)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=60), st.integers(7, 30), st.integers(0, 40))
def test_the_owner_shows_most(lengths: list[int], capacity: int, stride: int) -> None:
    windows = split_windows(lengths, capacity, stride)

    def context(unit: int, window: tuple[int, int]) -> float:
        start, end = window
        left = sum(lengths[start:unit]) if start else np.inf
        right = sum(lengths[unit + 1 : end]) if end < len(lengths) else np.inf
        return min(left, right)

    for unit, owner in enumerate(owners(lengths, windows).tolist()):
        shown = [context(unit, window) if window[0] <= unit < window[1] else -1 for window in windows]
        assert shown[owner] == max(shown)
        assert owner == shown.index(max(shown))


def test_windows_by_hand() -> None:
    assert split_windows([1] * 10, 10, 4) == [(0, 10)]
    assert split_windows([1] * 12, 6, 2) == [(0, 6), (4, 10), (8, 12)]
    assert owners([1] * 12, [(0, 6), (4, 10), (8, 12)]).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert split_windows([3, 3, 3], 6, 0) == [(0, 2), (2, 3)]
