from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.plan import BatchPlan, cut_by_length, cut_evenly, draw_apart, num_sharing

lengths_of = st.lists(st.integers(1, 300), min_size=1, max_size=120)


def plan_of(lengths: list[int], rows_per_step: int = 8, tokens: int = 512, seed: int = 0, world_size: int = 1) -> BatchPlan:
    return BatchPlan(np.asarray(lengths, dtype=np.int32), rows_per_step, tokens, seed, world_size)


def flat(steps: list) -> list[int]:
    return [int(row) for step in steps for part in step for row in part]


@given(lengths_of, st.integers(1, 40), st.integers(1, 2000), st.integers(0, 5), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_epoch_has_every_row_once(lengths: list[int], rows_per_step: int, tokens: int, seed: int, epoch: int) -> None:
    plan = plan_of(lengths, rows_per_step, tokens, seed)
    steps = plan.batches(epoch)
    assert sorted(flat(steps)) == list(range(len(lengths)))
    assert len(steps) == plan.steps_per_epoch
    sizes = [sum(len(part) for part in step) for step in steps]
    assert all(size == rows_per_step for size in sizes[:-1])
    assert 1 <= sizes[-1] <= rows_per_step


@given(lengths_of, st.integers(1, 40), st.integers(1, 2000))
@settings(max_examples=100, deadline=None)
def test_the_bound_on_tokens_holds_unless_a_row_stands_alone(lengths: list[int], rows_per_step: int, tokens: int) -> None:
    for step in plan_of(lengths, rows_per_step, tokens).batches(0):
        for part in step:
            assert len(part) == 1 or len(part) * max(lengths[row] for row in part) <= tokens


@given(lengths_of, st.integers(1, 40), st.integers(1, 8), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_ranks_partition_each_step(lengths: list[int], rows_per_step: int, world_size: int, epoch: int) -> None:
    plan = plan_of(lengths, rows_per_step, world_size=world_size)
    by_rank = [plan.batches(epoch, rank) for rank in range(world_size)]
    assert {len(steps) for steps in by_rank} == {plan.steps_per_epoch}
    for number, drawn in enumerate(plan.drawn(epoch)):
        together = [row for steps in by_rank for row in flat([steps[number]])]
        assert sorted(together) == sorted(drawn.tolist())


@given(st.integers(1, 90), st.integers(1, 12), st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_rows_that_share_a_key_are_drawn_apart(num_rows: int, rows_per_step: int, num_keys: int, epoch: int) -> None:
    keys = np.random.default_rng(num_rows).integers(num_keys, size=(num_rows, 1))
    plan = BatchPlan(np.ones(num_rows, dtype=np.int32), rows_per_step, 512, 0, apart=keys)
    drawn = plan.drawn(epoch)
    assert sorted(np.concatenate(drawn)) == list(range(num_rows))
    assert [len(step) for step in drawn] == [len(step) for step in BatchPlan(plan.lengths, rows_per_step, 512, 0).drawn(epoch)]
    assert num_sharing(drawn, keys) <= num_sharing(BatchPlan(plan.lengths, rows_per_step, 512, 0).drawn(epoch), keys)
    if num_keys == 1:
        assert num_sharing(drawn, keys) == num_rows - len(drawn)


def test_a_row_that_waits_comes_first_in_the_next_step() -> None:
    keys = np.asarray([[0, 1], [1, 2], [3, 4], [5, 6], [0, 7]])
    assert [step.tolist() for step in draw_apart(np.arange(5), keys, 2)] == [[0, 2], [1, 3], [4]]
    assert num_sharing([np.arange(5)], keys) == 2


@given(lengths_of, st.integers(0, 1000), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_the_same_seed_and_epoch_give_the_same_plan(lengths: list[int], seed: int, epoch: int) -> None:
    first, second = plan_of(lengths, seed=seed), plan_of(lengths, seed=seed)
    first.batches(epoch + 1)  # asking for another epoch before changes nothing
    assert flat(first.batches(epoch)) == flat(second.batches(epoch))


def test_epochs_and_seeds_shuffle_differently() -> None:
    lengths = [5] * 200
    orders = [plan_of(lengths, seed=seed).order(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(200)) for order in orders)


def test_the_rows_of_a_step_do_not_depend_on_the_lengths() -> None:
    """Sorting happens inside a step: which rows it has is a plain shuffle, so the gradient is that of plain shuffling."""
    short, mixed = plan_of([1] * 50), plan_of(list(range(1, 51)))
    assert [rows.tolist() for rows in short.drawn(2)] == [rows.tolist() for rows in mixed.drawn(2)]


def test_every_row_is_equally_likely_to_come_first() -> None:
    counts = np.zeros(20)
    for epoch in range(2000):
        counts[plan_of([3] * 20).order(epoch)[0]] += 1
    assert counts.min() > 60
    assert counts.max() < 150


# cuts


def cost_of(lengths: np.ndarray, parts: list[np.ndarray], pass_cost: int) -> int:
    return sum(len(part) * int(lengths[part].max()) + pass_cost for part in parts)


def best_cost(lengths: list[int], tokens: int, pass_cost: int) -> int:
    """Over every way to cut the sorted lengths."""
    ordered = sorted(lengths, reverse=True)
    costs = []
    for number in range(len(ordered)):
        for cuts in combinations(range(1, len(ordered)), number):
            edges = [0, *cuts, len(ordered)]
            parts = [ordered[start:end] for start, end in pairwise(edges)]
            if all(len(part) == 1 or len(part) * part[0] <= tokens for part in parts):
                costs.append(sum(len(part) * part[0] + pass_cost for part in parts))
    return min(costs)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 300), st.sampled_from([0, 5, 20, 128]))
@settings(max_examples=120, deadline=None)
def test_the_cuts_are_the_cheapest(lengths: list[int], tokens: int, pass_cost: int) -> None:
    array = np.asarray(lengths)
    parts = cut_by_length(array, tokens, pass_cost_tokens=pass_cost)
    assert cost_of(array, parts, pass_cost) == best_cost(lengths, tokens, pass_cost)


@given(lengths_of, st.integers(1, 2000), st.one_of(st.none(), st.integers(1, 50)))
@settings(max_examples=100, deadline=None)
def test_cuts_are_in_order_and_within_bounds(lengths: list[int], tokens: int, rows: int | None) -> None:
    array = np.asarray(lengths)
    parts = cut_by_length(array, tokens, rows)
    indices = np.concatenate(parts)
    assert sorted(indices.tolist()) == list(range(len(lengths)))
    assert (np.diff(array[indices]) <= 0).all(), "longest first"
    for part in parts:
        assert len(part) >= 1
        assert len(part) == 1 or len(part) * array[part].max() <= tokens
        assert rows is None or len(part) <= rows


def test_no_rows_make_no_batch() -> None:
    assert cut_by_length(np.asarray([], dtype=np.int64), 100) == []
    assert cut_by_length(np.asarray([], dtype=np.int64), 100, 8) == []


def test_an_enormous_step_is_cut_too() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, size=5000)
    parts = cut_by_length(lengths, 4096)
    assert sorted(np.concatenate(parts).tolist()) == list(range(5000))
    assert max(len(part) * int(lengths[part].max()) for part in parts) <= 4096


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9])
def test_steps_per_epoch_rounds_up(num_rows: int) -> None:
    assert plan_of([4] * num_rows, rows_per_step=8).steps_per_epoch == len(plan_of([4] * num_rows, rows_per_step=8).batches(0))


@given(lengths=st.lists(st.integers(1, 200), max_size=80), tokens=st.integers(1, 600))
def test_even_cuts_hold_every_row_once_within_the_bound(lengths: list[int], tokens: int) -> None:
    parts = cut_evenly(lengths, tokens)
    assert sorted(index for part in parts for index in part.tolist()) == list(range(len(lengths)))
    assert all(len(part) == 1 or sum(lengths[index] for index in part) <= tokens for part in parts)
    ordered = [lengths[index] for part in parts for index in part]
    assert ordered == sorted(lengths, reverse=True)


def test_even_cuts_are_even() -> None:
    parts = cut_evenly([10] * 50, 300)
    assert [len(part) for part in parts] == [26, 24]
    plan = BatchPlan(np.asarray([10] * 50), 50, 300, seed=0, end_to_end=True)
    assert [plan.num_computed(part) for part in plan.batches(0)[0]] == [260, 240]
