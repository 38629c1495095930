"""What kernels of many numbers are given: structs of C, field by field as stacks.h, blocks.h and the two kinds of block have them.

A tensor is the address of its first element. Whoever fills a struct keeps the tensors.
"""

from __future__ import annotations

import ctypes
from typing import ClassVar

from tunesmith.native.library import library

ADDRESS, INT, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Struct(ctypes.Structure):
    """What `library.call` takes as it takes a tensor."""

    def data_ptr(self) -> int:
        """Its address."""
        return ctypes.addressof(self)


class Linear(Struct):
    """A stack of linear layers in a pass, and places for the gradients that are wanted."""

    _fields_: ClassVar = [
        *((name, ADDRESS) for name in ("stack", "p", "seeds", "of_weight")),
        ("weight_is_bf16", INT),
        *((name, ADDRESS) for name in ("of_bias", "of_a", "of_b")),
    ]


class Attention(Struct):
    """Attention in a pass."""

    _fields_: ClassVar = [
        *((name, ADDRESS) for name in ("boundaries", "key_boundaries", "sequences")),
        *((name, INT) for name in ("num_sequences", "heads", "kv_heads", "width", "left", "right")),
        ("scale", DOUBLE),
        ("dropout", DOUBLE),
        ("seed", INT),
    ]


class LayerNorm(Struct):
    """norm(residual + dropout(x)), and places for the gradients that are wanted."""

    _fields_: ClassVar = [
        ("weight", ADDRESS),
        ("bias", ADDRESS),
        ("eps", DOUBLE),
        ("p", DOUBLE),
        ("seed", INT),
        ("of_weight", ADDRESS),
        ("of_bias", ADDRESS),
    ]


class RMSNorm(Struct):
    """norm(residual + x), and the place for its gradient if that is wanted."""

    _fields_: ClassVar = [("weight", ADDRESS), ("eps", DOUBLE), ("of_weight", ADDRESS)]


class EncoderPass(Struct):
    """A pass through a block of encoder_block.cpp."""

    _fields_: ClassVar = [
        *((name, Linear) for name in ("queries", "keys", "attended", "up", "down")),
        ("attention", Attention),
        ("middle", LayerNorm),
        ("last", LayerNorm),
        ("activate", ADDRESS),
        ("activate_backward", ADDRESS),
        ("rows", INT),
        ("num_given", INT),
        *((name, ADDRESS) for name in ("hidden", "x", "kept", "temporary", "output", "output_x")),
        ("output_x_stride", INT),
        *((name, ADDRESS) for name in ("grad", "of_hidden", "of_given")),
        ("needs_hidden", INT),
        ("needs_projections", INT),
    ]


class DecoderPass(Struct):
    """A pass through a block of decoder_block.cpp."""

    _fields_: ClassVar = [
        *((name, Linear) for name in ("projections", "attended", "gates", "down")),
        ("attention", Attention),
        *((name, RMSNorm) for name in ("first", "middle", "next")),
        *((name, ADDRESS) for name in ("times", "times_backward", "rotate", "cos", "sin")),
        ("rows", INT),
        *((name, ADDRESS) for name in ("hidden", "x", "rstd")),
        ("makes_x", INT),
        *((name, ADDRESS) for name in ("kept", "temporary", "output", "next_x")),
        ("next_stride", INT),
        *((name, ADDRESS) for name in ("next_rstd", "grad", "of_hidden")),
        ("needs_x", INT),
        ("needs_projections", INT),
    ]


def kernel_address(name: str) -> int:
    """Of a kernel."""
    found = ctypes.cast(getattr(library(), name), ctypes.c_void_p).value
    assert found, name
    return found
