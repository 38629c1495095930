from pathlib import Path

import pytest

from tunesmith.registry import METHODS, TASKS
from tunesmith.verbs.init import spec_of

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_spec(example: Path) -> None:
    spec = spec_of(example)
    assert type(spec.task) is TASKS.get(spec.task.name).spec
    assert type(spec.method) is METHODS.get(spec.method.name).spec
    assert len(EXAMPLES) > 20
