from __future__ import annotations

from itertools import accumulate

import pytest
from bench.compare import WARM_UP_STEPS
from bench.growth import WINDOW, step_seconds


def ends_of(seconds: list[float]) -> list[float]:
    return list(accumulate([*[10.0] * WARM_UP_STEPS, *seconds]))


def test_first_steps_and_a_pause_do_not_count() -> None:
    pause = [1.0] * WINDOW + [50.0] + [1.0] * (2 * WINDOW)
    assert step_seconds(ends_of(pause)) == pytest.approx(1.0)


def test_what_returns_every_few_steps_counts() -> None:
    assert step_seconds(ends_of([1.0, 1.0, 4.0] * 3 * WINDOW)) == pytest.approx(2.0)


@pytest.mark.parametrize("num_steps", [1, WINDOW - 1, WINDOW])
def test_few_steps_have_their_mean(num_steps: int) -> None:
    assert step_seconds(ends_of([3.0] * num_steps)) == pytest.approx(3.0)
