"""QLoRA: the frozen base is held in 4 or 8 bits by bitsandbytes, the adapters and heads in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError, did_you_mean
from tunesmith.methods.lora.adapters import attach, decide, modules_of
from tunesmith.methods.lora.section import QLoraSpec
from tunesmith.models.load import LoadedModel, require_package
from tunesmith.registry import Decision
from tunesmith.runs.processes import compute_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEADS = (
    "lm_head", "embed_out", "score", "classifier", "classification_head", "pooler", "pooler.dense", "qa_outputs",
    "cls", "predictions", "vocab_transform", "vocab_projector", "generator_predictions", "generator_lm_head", "head", "decoder$",
)  # fmt: skip
"""Beginnings or ends of names of layers outside the frozen body; upstream's own choice spares only the last layer of a head."""


def quantization(section: QLoraSpec) -> Any:
    """transformers' BitsAndBytesConfig.

    Raises InputError when bitsandbytes is not installed.
    """
    require_package("bitsandbytes", "quant")
    import torch
    from transformers import BitsAndBytesConfig

    skipped = [*HEADS, *section.skip_modules]
    if section.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=section.quant_type,
        bnb_4bit_use_double_quant=section.double_quant,
        bnb_4bit_compute_dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[_compute_dtype(section).value],
        llm_int8_skip_modules=skipped,
    )


def _compute_dtype(section: QLoraSpec) -> Decision:
    import torch

    field = "method.compute_dtype"
    if section.compute_dtype != "auto":
        return Decision(field, section.compute_dtype, "as the spec says")
    if section.bits == 8:
        return Decision(field, "fp32", "of no effect: products of 8-bit weights are computed in int8 and fp16")
    if compute_device().type != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Decision(field, "bf16", "the GPU has bf16")
    return Decision(field, "fp32", "the weights are unpacked to it: exact, and as fast without a GPU")


def decide_quantized(section: QLoraSpec, model: PreTrainedModel) -> list[Decision]:
    """What `lora` decides, and the type that products are computed in.

    Raises InputError when a setting names what the model does not have.
    """
    import torch

    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for skipped in section.skip_modules:
        if not any(name.endswith(skipped) for name in linear):
            fix = did_you_mean(skipped, sorted({name.rpartition(".")[2] for name in linear}))
            problem = "skip_modules names no linear layer"
            raise InputError("method.no_target", problem, where="method.skip_modules", found=skipped, fix=fix)
    auto = [_compute_dtype(section)] if section.compute_dtype == "auto" else []
    return [*auto, *decide(section, model)]


def attach_quantized(section: QLoraSpec, loaded: LoadedModel, peft_task_type: str | None) -> PreTrainedModel:
    """The quantised model with adapters, its other weights in fp32."""
    import peft

    model = loaded.model
    output = model.get_output_embeddings()
    trained = [model.get_submodule(name) for name in [*modules_of(model, loaded.head_parameters), *section.modules_to_save]]
    for module in [*trained, *([] if output is None else [output])]:
        for name, parameter in module.named_parameters():
            if not parameter.is_floating_point():
                raise InputError(
                    "spec.conflict",
                    "a layer that is trained in full cannot be quantised",
                    where="method.skip_modules",
                    found=name,
                    fix="name it in method.skip_modules",
                )
    prepared = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    loaded.model = prepared
    return attach(section, loaded, peft_task_type)
