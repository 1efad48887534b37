"""The linears of a decoder layer by the input they share. Each group is one linear of the exported graph, under its name."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class LayerForm:
    """The parts of a decoder layer that decide what can be folded into what.

    Attributes:
        query_groups: query heads per KV head.
        head_dim: width of a head.
        norm_before: attention and MLP read the residual stream through a norm.
        norm_after: what they give goes through a norm.
    """

    query_groups: int
    head_dim: int
    norm_before: bool = True
    norm_after: bool = False

    @property
    def rotatable(self) -> bool:
        """Whether the residual stream can be rotated: a norm's weights do not commute with a rotation of what it gives."""
        return self.norm_before and not self.norm_after

    def can_smooth(self, linear: str) -> bool:
        """Whether something makes the linear's input into which a scale can be folded; `linear` is a group or lm_head."""
        return self.norm_before or not linear.endswith(("self_attn.qkv_proj", "mlp.gate_up_proj"))

    def block(self, group: str) -> str:
        """The module whose output is what the group gives to the residual stream."""
        first = group in ("self_attn.qkv_proj", "mlp.gate_up_proj")
        return group.split(".", 1)[0] if first or self.norm_after else group


def locate(module: str) -> tuple[str, str, str | None]:
    """(prefix of its layer, name within the layer, group that it belongs to) of a module such as `model.layers.0.mlp.up_proj`."""
    *layer, name = module.split(".", 3)
    return ".".join(layer), name, next((group for group, linears in GROUPS.items() if name in linears), None)
