from __future__ import annotations

from typing import Any

import pytest
import torch

from error_examples import documented
from tunesmith.errors import RunError
from tunesmith.runs.processes import Processes, compute_device, join_processes


def test_one_process_has_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = join_processes()
    assert (alone.rank, alone.count, alone.is_first) == (0, 1, True)
    assert alone.tell("a path") == "a path"
    assert alone.any(False, True) == [False, True]
    assert alone.sum(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    weight = torch.nn.Parameter(torch.ones(2))
    alone.add_gradients([weight])
    assert weight.grad is None


@pytest.mark.parametrize(
    ("num_gpus", "environment", "device"),
    [
        (0, {}, "cpu"),
        (2, {}, "cuda:0"),
        (2, {"LOCAL_RANK": "1"}, "cuda:1"),
        (2, {"LOCAL_RANK": "3"}, "cuda:1"),
        (2, {"ACCELERATE_USE_CPU": "true"}, "cpu"),
    ],
)
def test_each_process_computes_on_a_gpu_of_its_own(
    num_gpus: int, environment: dict[str, str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: num_gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    assert str(compute_device()) == device


def test_processes_talk_where_they_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL knows no tensors of the processor."""
    seen = []
    monkeypatch.setattr("tunesmith.runs.processes.compute_device", lambda: torch.device("meta"))
    monkeypatch.setattr("tunesmith.runs.processes.Processes.sum", lambda self, tensor: seen.append(tensor.device.type) or [0, 1])
    assert Processes(0, 2).any(False, True) == [False, True]
    assert seen == ["meta"]


def test_what_another_lacks_counts_as_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        def wait(self) -> None:
            pass

    def double(tensor: torch.Tensor, async_op: bool) -> Done:
        """What a second process with the same tensors would add."""
        tensor *= 2
        return Done()

    monkeypatch.setattr("torch.distributed.all_reduce", double)
    learnt, unread, frozen = (torch.nn.Parameter(torch.ones(2), requires_grad=number < 2) for number in range(3))
    learnt.grad = torch.tensor([1.0, 2.0])
    both = Processes(1, 2)
    both.add_gradients([learnt, unread, frozen])
    assert learnt.grad.tolist() == [2.0, 4.0]
    assert unread.grad is None, "no process has one"
    monkeypatch.setattr(Processes, "any", lambda self, *values: [True] * len(values))
    both.add_gradients([unread])
    assert unread.grad is not None
    assert unread.grad.tolist() == [0.0, 0.0]


def test_a_process_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("Connection closed by\n peer [127.0.0.1]:29500")

    monkeypatch.setattr("torch.distributed.broadcast_object_list", closed)
    with pytest.raises(RunError) as caught:
        Processes(1, 2).tell()
    problem = caught.value.problems[0]
    assert problem.code == "run.other_process"
    assert problem.found == "Connection closed by peer [127.0.0.1]:29500"
    assert "tunesmith resume" in problem.fix
    documented("run.other_process", "torchrun --nproc-per-node 2 -m tunesmith.cli train rows.jsonl", str(problem), {})
