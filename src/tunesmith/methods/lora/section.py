"""The `method:` sections of lora and qlora."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunesmith.spec import Auto, NamedSection, Share


class LoraSpec(NamedSection):
    """Low-rank adapters on frozen linear layers; the head and other new weights are trained in full and saved with them."""

    name: str = "lora"
    """`lora`."""
    rank: Annotated[int, Field(gt=0, le=4096)] = 16
    """Rank of each update (peft's r)."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Updates are scaled by alpha / rank."""
    dropout: Share = 0.05
    """Dropout on the adapters' input."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023)."""
    use_dora: bool = False
    """Train the length of each output's weights apart from their direction (Liu et al. 2024); slower."""
    init_lora_weights: (
        Literal[True, "gaussian", "orthogonal", "mica", "olora", "pissa"] | Annotated[str, Field(pattern=r"^pissa_niter_\d+$")]
    ) = True
    """How adapters start, as in peft: `true` is Kaiming's A and a zero B. `pissa`, `pissa_niter_16` and `olora` move the
    largest part of each layer into its adapter; what is saved fits the unchanged base, at twice the rank."""
    target_modules: Annotated[list[str], Field(min_length=1)] | Auto = "auto"
    """Names, or ends of names, of the linear layers to adapt; `auto` is all of them but the head."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Names, or ends of names, of further modules to train in full and save with the adapters."""

    @model_validator(mode="after")
    def _fits(self) -> LoraSpec:
        if self.init_lora_weights == "orthogonal" and self.rank % 2:
            raise ValueError("init_lora_weights: orthogonal needs an even rank")
        if self.init_lora_weights == "mica" and self.use_dora:
            raise ValueError("init_lora_weights: mica and use_dora exclude each other")
        return self


class QLoraSpec(LoraSpec):
    """Low-rank adapters on a base that is held in 4 or 8 bits a weight; embeddings, norms and heads stay in 32."""

    name: str = "qlora"
    """`qlora`."""
    bits: Literal[4, 8] = 4
    """Bits of a weight of the frozen linear layers."""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values that 4 bits mean: `nf4` suits weights that are distributed normally."""
    double_quant: bool = True
    """Quantise the 4-bit blocks' scales too: 0.4 bits a weight less."""
    compute_dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """What 4-bit weights are unpacked to for products; `auto` is bf16 on a GPU that has it, else fp32."""
    skip_modules: list[str] = Field(default_factory=list)
    """Ends of names of further linear layers that are not quantised; heads never are."""

    @model_validator(mode="after")
    def _is_quantizable(self) -> QLoraSpec:
        # A resolved spec says every field: only what differs from the default was asked for.
        only_4_bits = {"quant_type": "fp4", "double_quant": False, "compute_dtype": "bf16"}
        idle = [name for name, value in only_4_bits.items() if getattr(self, name) == value]
        if self.bits == 8 and idle:
            raise ValueError(f"{', '.join(idle)} would have no effect with bits: 8")
        if self.init_lora_weights not in (True, "gaussian", "orthogonal"):
            raise ValueError("init_lora_weights of qlora is true, gaussian or orthogonal: others would quantise the base anew")
        return self
