"""What the engine does beside Trainer at each step."""

from __future__ import annotations

import torch
import transformers

import tiny_models
from tunesmith.engines.trainer import nothing_walked


def _model() -> transformers.BertModel:
    return transformers.BertModel(tiny_models.ENCODERS["bert"](64))


def test_the_mode_of_every_module_is_set_whatever_the_models_own_is() -> None:
    model = _model().train()
    with nothing_walked(model):
        model.encoder.layer[1].output.eval()  # as a library leaves it that loads weights
        assert model.train() is model
        assert all(module.training for module in model.modules())
        model.eval()
        assert not any(module.training for module in model.modules())
    assert "train" not in vars(model)
    assert all(module.training for module in model.train().modules())


def test_a_module_that_sets_its_mode_itself_is_asked() -> None:
    class Always(torch.nn.Module):
        def train(self, mode: bool = True) -> torch.nn.Module:
            return super().train(False)

    model = _model()
    model.pooler = Always()
    with nothing_walked(model):
        model.train()
        assert not model.pooler.training
        assert model.encoder.training
