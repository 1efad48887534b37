"""The linears of a decoder layer by the input they share. Each group is one linear of the exported graph, under its name."""

from __future__ import annotations

GROUPS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}

LM_HEAD = "lm_head"

PRODUCERS = {
    "input_layernorm": "self_attn.qkv_proj",
    "self_attn.v_proj": "self_attn.o_proj",
    "post_attention_layernorm": "mlp.gate_up_proj",
    "mlp.up_proj": "mlp.down_proj",
}
"""Modules whose output channels are the input channels of a group, so that a scale can be folded into them."""


def locate(module: str) -> tuple[str, str, str | None]:
    """(prefix of its layer, name within the layer, group that it belongs to) of a module such as `model.layers.0.mlp.up_proj`."""
    *layer, name = module.split(".", 3)
    return ".".join(layer), name, next((group for group, linears in GROUPS.items() if name in linears), None)
