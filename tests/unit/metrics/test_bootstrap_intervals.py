from __future__ import annotations

import numpy as np
import pytest

from tunesmith.metrics.bootstrap import NUM_RESAMPLES, counts_intervals, row_draw_intervals, row_weight_intervals

NUM_ROWS, NUM_RIGHT = 400, 300


def normal_interval() -> tuple[float, float]:
    """The textbook's 95% interval of a proportion."""
    share = NUM_RIGHT / NUM_ROWS
    half = 1.96 * np.sqrt(share * (1 - share) / NUM_ROWS)
    return share - half, share + half


def intervals() -> dict[str, list[float]]:
    right = (np.arange(NUM_ROWS) < NUM_RIGHT).astype(float)
    counts = counts_intervals(np.asarray([NUM_RIGHT, NUM_ROWS - NUM_RIGHT]), lambda draws: {"share": draws[:, 0] / draws.sum(1)})
    weights = row_weight_intervals(NUM_ROWS, lambda draws: {"share": draws @ right / draws.sum(1)})
    drawn = row_draw_intervals(NUM_ROWS, lambda rows: {"share": float(right[rows].mean())})
    return {"counts": counts["share"], "weights": weights["share"], "drawn": drawn["share"]}


@pytest.mark.parametrize("kind", ["counts", "weights", "drawn"])
def test_the_interval_of_a_proportion_is_that_of_the_textbook(kind: str) -> None:
    assert intervals()[kind] == pytest.approx(normal_interval(), abs=0.006)


def test_no_rows_have_no_interval() -> None:
    def fail(draws: np.ndarray) -> dict[str, np.ndarray]:
        raise AssertionError("nothing can be drawn")

    assert counts_intervals(np.zeros(3, dtype=int), fail) == {}
    assert row_weight_intervals(0, fail) == {}
    assert row_draw_intervals(0, fail) == {}  # type: ignore[arg-type]


def test_every_draw_has_as_many_rows_as_there_are() -> None:
    sizes: list[np.ndarray] = []

    def note(draws: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(draws.sum(1))
        return {"size": draws.sum(1)}

    assert counts_intervals(np.asarray([3, 4, 5]), note)["size"] == [12, 12]
    assert row_weight_intervals(50, note)["size"] == [50, 50]
    assert sum(len(size) for size in sizes) == 2 * NUM_RESAMPLES


def test_many_rows_are_weighted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import tunesmith.metrics.bootstrap as bootstrap

    monkeypatch.setattr(bootstrap, "CELLS_AT_ONCE", 10_000)
    parts: list[int] = []

    def note(draws: np.ndarray) -> dict[str, np.ndarray]:
        parts.append(len(draws))
        return {"share": draws[:, 0].astype(float)}

    row_weight_intervals(500, note)
    assert max(parts) * 500 <= 10_000
    assert sum(parts) == 400  # 20 x 10,000 / 500
