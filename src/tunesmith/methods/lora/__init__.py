"""LoRA (Hu et al. 2021) and QLoRA (Dettmers et al. 2023) through PEFT: low-rank updates of frozen linear layers."""

from __future__ import annotations

from tunesmith.methods.lora.adapters import attach, decide, idle_adapters, linear_modules, merge, modules_of
from tunesmith.methods.lora.quantized import attach_quantized, decide_quantized, quantization
from tunesmith.methods.lora.saving import save
from tunesmith.methods.lora.section import LoraSpec, QLoraSpec
from tunesmith.registry import Method

__all__ = ["LORA", "QLORA", "LoraSpec", "QLoraSpec", "idle_adapters", "linear_modules", "modules_of"]

LORA = Method(
    name="lora",
    summary="train low-rank adapters and the head (LoRA, by PEFT)",
    spec=LoraSpec,
    learning_rate=5e-4,
    decide=decide,
    attach=attach,
    save=save,
    idle=idle_adapters,
    merge=merge,
)
QLORA = Method(
    name="qlora",
    summary="train low-rank adapters on a base of 4 or 8 bits a weight (QLoRA, by PEFT and bitsandbytes)",
    spec=QLoraSpec,
    learning_rate=5e-4,
    decide=decide_quantized,
    attach=attach_quantized,
    save=save,
    quantization=quantization,
    idle=idle_adapters,
    merge=merge,
)
