"""What tests of accelerations share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tunesmith.speed import varlen


@pytest.fixture
def attention_by_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention of modules is computed by the kernel, as that of blocks always is, whatever was measured."""
    monkeypatch.setattr(varlen, "_seconds", lambda *_: {"native": 0.0})
    varlen._plan.cache_clear()
    yield
    varlen._plan.cache_clear()
