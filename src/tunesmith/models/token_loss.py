"""Cross-entropy of tokens, computed only where a token is trained and a few thousand positions at a time.

Of [rows, tokens, vocabulary] logits most are never needed: prompts and padding are not trained. The hidden states of the trained
positions alone go through the language-model head, and never more than a chunk of logits exists. Sum and gradient are those of
the plain loss; `test_token_loss` holds them to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.weak import WeakTensorKeyDictionary

from tunesmith.data.collate import IGNORED
from tunesmith.models.mapped import give_back
from tunesmith.native.library import library
from tunesmith.native.loss import token_loss
from tunesmith.native.matmul import add_product, product

CHUNK_TOKENS = 1024
"""Positions whose logits exist at once."""
PROBE_TOKENS = 8


@dataclass
class TokenScores:
    """Scores of the trained tokens of a batch, in the order of rows and positions."""

    loss: torch.Tensor
    """Sum of their cross-entropies, in fp32, with its gradient."""
    losses: torch.Tensor
    """The cross-entropy of each, [trained], detached."""
    correct: torch.Tensor
    """Whether each is the likeliest token, [trained]."""


@dataclass(frozen=True)
class Head:
    """How a model turns hidden states [..., hidden] into logits [..., vocabulary]."""

    module: torch.nn.Module
    scale: float = 1.0
    softcap: float | None = None
    """Logits are bent to softcap x tanh(logits / softcap) (Gemma 2)."""
    body: torch.nn.Module | None = None
    """Where something stands between the pretrained body and the head that sees one position at a time (BERT's transform), the body:
    positions are chosen where its hidden states leave it."""

    bias: torch.Tensor | None = None
    """What is added to the output of the module [vocabulary], no weight (BART, Marian)."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits in fp32."""
        raw = _apply(self.module, hidden).float()
        return self.finish(raw if self.bias is None else raw + self.bias)

    def finish(self, raw: torch.Tensor) -> torch.Tensor:
        """What the model does to the output of its head."""
        scaled = raw * self.scale if self.scale != 1.0 else raw
        return self.softcap * torch.tanh(scaled / self.softcap) if self.softcap else scaled


_CASTS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_HEADS: WeakKeyDictionary[torch.nn.Module, Head | None] = WeakKeyDictionary()
_CHOSEN: WeakKeyDictionary[torch.nn.Module, torch.Tensor] = WeakKeyDictionary()
"""Of a head, the positions that it reads in the pass under way."""


def score_tokens(model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor, shifted: bool = True) -> TokenScores:
    """Scores of predicting labels [rows, tokens] (aligned with input_ids; -100 where a token is not trained).

    A token is predicted at the position before it, or without `shifted` at its own.
    """
    if shifted:
        trained = torch.zeros_like(labels, dtype=torch.bool)
        trained[:, :-1] = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][labels[:, 1:] != IGNORED]
    else:
        trained = labels != IGNORED
        targets = labels[trained]
    head = _head_of(model)
    if head is None:
        return _score_logits(model(**inputs).logits[trained], targets)
    hidden = _hidden_states(model, head, inputs, trained)
    if type(head.module) is torch.nn.Linear:
        loss, losses, correct = _HeadLoss.apply(
            hidden, head.module.weight, head.module.bias if head.bias is None else head.bias, targets, head
        )  # type: ignore[no-untyped-call]
        return TokenScores(loss, losses, correct)
    parts = []
    for chunk, wanted in zip(torch.split(hidden, CHUNK_TOKENS), torch.split(targets, CHUNK_TOKENS), strict=True):
        logits = torch.utils.checkpoint.checkpoint(head.logits, chunk, use_reentrant=False) if chunk.requires_grad else head.logits(chunk)
        parts.append(_score_logits(logits, wanted))
    if not parts:
        return _score_logits(head.logits(hidden), targets)
    return TokenScores(
        torch.stack([part.loss for part in parts]).sum(),
        torch.cat([part.losses for part in parts]),
        torch.cat([part.correct for part in parts]),
    )


def logits_at(model: Any, inputs: dict[str, torch.Tensor], chosen: torch.Tensor) -> torch.Tensor:
    """Logits [chosen, vocabulary] in fp32 at the positions chosen [rows, tokens], in their order."""
    head = _head_of(model)
    logits: torch.Tensor = (
        model(**inputs).logits[chosen].float() if head is None else head.logits(_hidden_states(model, head, inputs, chosen))
    )
    return logits


def chosen_of(head: torch.nn.Module) -> torch.Tensor | None:
    """The positions [rows, tokens] whose hidden states the head reads in the pass under way; None: all, as far as is known."""
    return _CHOSEN.get(head)


def _head_of(model: Any) -> Head | None:
    plain = getattr(model, "module", model)
    if plain not in _HEADS:
        _HEADS[plain] = find_head(plain)
    return _HEADS[plain]


def find_head(model: Any) -> Head | None:
    """The model's head, when it and nothing else turns hidden states into logits; tried on a few tokens, whatever the model says."""
    module = model.get_output_embeddings()
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    if module is None:
        return None
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(plain, plain.base_model_prefix, None)
    heads = [
        Head(module, scale, getattr(config, "final_logit_softcapping", None), None if body is plain else body, _added_bias(plain, module))
    ]
    if heads[0].body is not None:
        heads.append(replace(heads[0], body=None))
    device = next(model.parameters()).device
    ids = torch.arange(PROBE_TOKENS, device=device)[None, :] % config.vocab_size
    chosen = torch.ones_like(ids, dtype=torch.bool)
    chosen[:, ::3] = False
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if plain.config.is_encoder_decoder else {})}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = model(**inputs).logits[chosen].float()
            return next((head for head in heads if _fits(model, head, inputs, chosen, expected)), None)
    finally:
        model.train(was_training)


def _added_bias(model: Any, module: Any) -> torch.Tensor | None:
    """The buffer of a bias that the model adds to the output of a head without one."""
    bias = getattr(model, "final_logits_bias", None)
    return bias[0] if bias is not None and getattr(module, "bias", None) is None else None


def _fits(model: Any, head: Head, inputs: dict[str, torch.Tensor], chosen: torch.Tensor, expected: torch.Tensor) -> bool:
    try:
        hidden = _hidden_states(model, head, inputs, chosen)
        found = head.logits(hidden)
    except (IndexError, KeyError, RuntimeError, TypeError):  # no hidden state passed through the module, or not one by one
        return False
    tolerance = 1e-4 if hidden.dtype == torch.float32 else 2e-2
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def _hidden_states(model: Any, head: Head, inputs: dict[str, torch.Tensor], chosen: torch.Tensor) -> torch.Tensor:
    """What reaches the head at the positions chosen [rows, tokens], [chosen, hidden], in the type that the head computes in; the head
    itself is given nothing to do, nor are a linear one's weights cast for it."""
    caught = []
    autocasts = False

    def catch(module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal autocasts
        hidden, device = arguments[0], arguments[0].device.type
        autocasts = torch.is_autocast_enabled(device)
        caught.append(hidden.to(torch.get_autocast_dtype(device)) if autocasts else hidden)
        hidden = hidden[:, :0]
        if type(module) is torch.nn.Linear:
            hidden = hidden.to(module.weight.dtype)
            torch.set_autocast_enabled(device, False)
        return (hidden, *arguments[1:])

    def leave(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: Any) -> None:
        torch.set_autocast_enabled(arguments[0].device.type, autocasts)

    def choose(_: torch.nn.Module, arguments: Any, output: Any) -> Any:
        picked = output[0][chosen][None]
        if isinstance(output, tuple):
            return (picked, *output[1:])
        output["last_hidden_state"] = picked
        return output

    handles = [head.module.register_forward_pre_hook(catch), head.module.register_forward_hook(leave, always_call=True)]
    if head.body is not None:
        handles.append(head.body.register_forward_hook(choose))
    _CHOSEN[head.module] = chosen
    try:
        model(**inputs)
    finally:
        del _CHOSEN[head.module]
        for handle in handles:
            handle.remove()
    return caught[0][chosen] if head.body is None else caught[0][0]


def _apply(module: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """The head's output; its weights are cast to what the body computed in, as autocast does."""
    with torch.autocast(hidden.device.type, dtype=hidden.dtype, enabled=hidden.dtype != torch.float32):
        return module(hidden)  # type: ignore[no-any-return]


def _score_logits(logits: torch.Tensor, targets: torch.Tensor) -> TokenScores:
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return TokenScores(losses.sum(), losses.detach(), logits.argmax(-1) == targets)


class _HeadLoss(torch.autograd.Function):
    """Loss of a linear head: the gradient is computed in the same pass over the logits, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, head: Head) -> Any:
        with_grad = any(ctx.needs_input_grad[:3])
        cast = _cast(weight, hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight: torch.Tensor | None = None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        losses = torch.empty(len(targets), device=hidden.device)
        correct = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
        for start in range(0, len(targets), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            raw = product(hidden[part], cast.t(), apart=True)
            if bias is not None:
                raw += bias.to(raw.dtype)
            losses[part], correct[part], grad = _score_chunk(raw, targets[part], head, with_grad)
            if grad_hidden is not None:
                grad_hidden[part] = product(grad, cast)
            if grad_weight is not None:
                add_product(grad_weight, grad.t(), hidden[part])
            elif ctx.needs_input_grad[1]:
                grad_weight = product(grad.t(), hidden[part], out_dtype=torch.float32)
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=torch.float32)
            del raw, grad  # before the next chunk is made
        if ctx.needs_input_grad[1] and grad_weight is None:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        ctx.grads, ctx.dtypes = [grad_hidden, grad_weight, grad_bias], [hidden.dtype, weight.dtype, weight.dtype]
        ctx.mark_non_differentiable(losses, correct)
        return losses.sum(), losses, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> Any:
        grads, ctx.grads = ctx.grads, None  # that of the weight is as large as the vocabulary: it is scaled where it lies, and handed on
        assert grads is not None, "backward a second time"
        return (
            *(None if grad is None else grad.mul_(grad_loss).to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)),
            None,
            None,
        )


def _score_chunk(raw: torch.Tensor, targets: torch.Tensor, head: Head, with_grad: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, whether each is right, and the gradient with respect to the head's output [tokens, vocabulary], which may be written over."""
    if raw.device.type == "cpu" and library() is not None:
        return *token_loss(raw, targets, head.scale, head.softcap, with_grad), raw
    logits = head.finish(raw.float())
    log_sum = logits.logsumexp(-1)
    target = logits.gather(-1, targets[:, None])[:, 0]
    losses, correct = log_sum - target, target >= logits.amax(-1)
    if not with_grad:
        return losses, correct, raw
    grad = (logits - log_sum[:, None]).exp_()
    grad[torch.arange(len(targets), device=grad.device), targets] -= 1
    if head.softcap:
        grad *= 1 - (logits / head.softcap) ** 2
    return losses, correct, (grad * head.scale if head.scale != 1.0 else grad).to(raw.dtype)


def _cast(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight in another type; of a frozen one the copy is kept."""
    if weight.dtype == dtype:
        return weight.detach()
    if weight.requires_grad:
        return weight.detach().to(dtype)
    known: tuple[int, torch.Tensor] | None = _CASTS.get(weight)  # type: ignore[no-untyped-call]
    if known is None or known[0] != weight._version or known[1].dtype != dtype:
        known = _CASTS[weight] = weight._version, weight.detach().to(dtype)
        if not weight.requires_grad:
            give_back(weight)
    return known[1]
