"""The decoder as an ONNX graph: token ids and a KV cache in, logits of the wanted rows out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch

from quasar.calibration.groups import GROUPS, LM_HEAD
from quasar.calibration.source import TensorSource
from quasar.engines.cache import CacheSpec
from quasar.exporter.graph.attention import Attention
from quasar.exporter.graph.attention_onnxruntime import FusedAttention, PackedAttention, RaggedAttention
from quasar.exporter.graph.attention_standard import PortableAttention
from quasar.exporter.graph.builder import MICROSOFT, GraphBuilder
from quasar.exporter.graph.linear_onnxruntime import Linear
from quasar.exporter.model.architecture import Architecture

AttentionForm = Literal["packed", "ragged", "fused", "portable"]
ATTENTION: dict[AttentionForm, Any] = {
    "packed": PackedAttention, "ragged": RaggedAttention, "fused": FusedAttention, "portable": PortableAttention,
}  # fmt: skip


@dataclass(frozen=True)
class Decoder:
    """Writes the graph of one engine.

    Attributes:
        linear: how the seven projections of each layer are stored and computed.
        lm_head: the same for the projection to the vocabulary.
        attention: `packed` (many sequences side by side, on ONNX Runtime's CPU provider), `ragged` (the same in an operator of
            ours), `fused` (one sequence on ONNX Runtime) or `portable` (a rectangle of slots, any runtime).
        slots: sequences in one run; of packed and portable graphs more than one.
        half_embedding: store the embedding rows as float16, shared between engines; else as float32 of this engine.
        layers: the checkpoint's layers to write, in order; None for all. Caches are numbered by their place in it.
        cache_type: of keys and values, see `CacheSpec.dtype`. With float16, attention is float16, too. What is between linears
            and attention is float32 all the same: some models' hidden states leave the range of float16.
        choices: also give `best` [B, R], the likeliest token of each row, and `confidence` [B, R], its probability, so that
            greedy decoding need not take logits off the device.
        coarse: of an int4 cache, read the upper plane alone.
        value_scale: gives, for a layer's prefix, by what values are divided in the cache that another engine owns, float32
            [Hkv * D], or None; what attention makes of them is multiplied by it.
    """

    architecture: Architecture
    linear: Linear
    lm_head: Linear
    attention: AttentionForm
    max_length: int
    slots: int = 1
    half_embedding: bool = True
    layers: tuple[int, ...] | None = None
    cache_type: str = "float32"
    choices: bool = False
    coarse: bool = False
    value_scale: Callable[[str], torch.Tensor | None] | None = None

    def cache(self, owner: str) -> CacheSpec:
        """The cache that the graph reads and writes; see `CacheSpec` for its owner."""
        a = self.architecture
        layers = a.num_hidden_layers if self.layers is None else len(self.layers)
        layout = "positions"
        if self.attention == "ragged":
            layout = "planes" if self.cache_type == "int4" else "groups"
        return CacheSpec(layers, a.num_key_value_heads, self.max_length, a.head_dim, self.cache_type, self.slots, owner, layout)

    def write(self, g: GraphBuilder, source: TensorSource, advance: Callable[[], object] = lambda: None) -> None:
        """Append inputs, nodes, weights and outputs to `g`; `advance` is called once per layer."""
        a = self.architecture
        batch: int | str = "batch" if self.attention == "portable" and self.slots > 1 else 1
        input_ids = g.input("input_ids", np.int64, [batch, "length"])
        rows = g.input("rows", np.int64, [batch, "rows"])
        cache = self.cache("")
        cache_shape = ["slots" if self.attention in ("packed", "ragged") else batch, *cache.shape]
        attend = ATTENTION[self.attention].create(g, a, cache, input_ids)
        attend = attend.coarse if self.coarse else attend

        with g.scope("model"):
            with g.scope("embed_tokens"):
                hidden = self._embed(g, source, input_ids)
            update = None  # what the last block adds to the residual stream; added inside the next norm
            layers = tuple(range(a.num_hidden_layers)) if self.layers is None else self.layers
            for place, layer in enumerate(layers):
                past = [g.input(f"past.{place}.{kind}", cache.storage, cache_shape) for kind in ("key", "value")]
                prefix = f"model.layers.{layer}"
                with g.scope(f"layers.{layer}"):
                    x, hidden = self._read(g, source, f"{prefix}.input_layernorm", hidden, update)
                    with g.scope("self_attn"):
                        q, k, v = self._project_qkv(g, source, prefix, x, attend, layer)
                        scale = None if self.value_scale is None else self.value_scale(prefix)
                        if scale is not None:
                            v = g.op("Div", v, g.weight(f"{prefix}.value_scale", scale.numpy()))
                        context, *present = attend(layer, q, k, v, past[0], past[1], rotated=a.qk_norm_after_rope)
                        if scale is not None:
                            by_query = scale.view(-1, 1, a.head_dim).expand(-1, a.query_groups, -1).flatten()
                            context = g.op("Mul", context, g.weight(f"{prefix}.context_scale", by_query.numpy()))
                        if layer == layers[-1]:  # beyond its keys and values, only wanted rows matter
                            context, hidden = (self._select(g, value, rows) for value in (context, hidden))
                        update = self._linear(g, source, prefix, "self_attn.o_proj", context)
                        update = self._norm_after(g, source, f"{prefix}.self_attn.output_norm", update)
                    x, hidden = self._read(g, source, f"{prefix}.post_attention_layernorm", hidden, update)
                    with g.scope("mlp"):
                        update = self._norm_after(g, source, f"{prefix}.mlp.output_norm", self._mlp(g, source, prefix, x))
                for kind, value in zip(("key", "value"), present, strict=True):
                    g.output(f"present.{place}.{kind}", value, cache.storage, cache_shape)
                advance()
            x, _ = self._norm(g, source, "model.norm", hidden, update)
        with g.scope("lm_head"):
            logits = self.lm_head(g, LM_HEAD, x, lambda: source.tensor(f"{LM_HEAD}.weight"), None)
        g.output("logits", logits, np.float32, [batch, "rows", a.vocab_size])
        if self.choices:
            with g.scope("choices"):
                g.output("best", g.op("ArgMax", logits, axis=-1, keepdims=0), np.int64, [batch, "rows"])
                last = g.constant([-1], np.int64)
                shifted = g.op("Sub", logits, g.op("ReduceMax", logits, last, keepdims=1))
                total = g.op("ReduceSum", g.op("Exp", shifted), last, keepdims=0)
                g.output("confidence", g.op("Reciprocal", total), np.float32, [batch, "rows"])

    def _embed(self, g: GraphBuilder, source: TensorSource, input_ids: ir.Value) -> Any:
        name = "model.embed_tokens.weight"
        if not self.half_embedding:
            return g.op("Gather", g.weight(name, source.tensor(name).numpy()), input_ids)
        rows = g.op("Gather", g.embedding(name, lambda: source.tensor(name).half().numpy()), input_ids)
        return g.op("Cast", rows, to=ir.DataType.FLOAT)

    def _read(self, g: GraphBuilder, source: TensorSource, norm: str, x: ir.Value, update: ir.Value | None) -> tuple[Any, Any]:
        """(what a block reads, the residual stream with what the last block adds to it)"""
        if self.architecture.norm_before:
            return self._norm(g, source, norm, x, update)
        total = x if update is None else g.op("Add", x, update)
        return total, total

    def _norm_after(self, g: GraphBuilder, source: TensorSource, name: str, x: ir.Value) -> Any:
        """What a block gives to the residual stream."""
        return self._norm(g, source, name, x, None)[0] if self.architecture.norm_after else x

    def _norm(self, g: GraphBuilder, source: TensorSource, name: str, x: ir.Value, update: ir.Value | None) -> tuple[Any, Any]:
        """(RMSNorm(x + update), x + update)"""
        weight = g.weight(f"{name}.weight", source.tensor(f"{name}.weight").numpy())
        epsilon = self.architecture.rms_norm_eps
        with g.scope(name.rsplit(".", 1)[1]):
            if self.attention == "portable":
                total = x if update is None else g.op("Add", x, update)
                return g.op("RMSNormalization", total, weight, axis=-1, epsilon=epsilon), total
            if update is None:
                return g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon), x
            normed, _, _, total = g.op(
                *("SkipSimplifiedLayerNormalization", x, update, weight), outputs=4, domain=MICROSOFT, epsilon=epsilon
            )
            return normed, total

    def _linear(self, g: GraphBuilder, source: TensorSource, prefix: str, group: str, x: ir.Value) -> ir.Value:
        """The linears of a group as one, their outputs side by side."""
        parts = [f"{prefix}.{linear}" for linear in GROUPS[group]]
        bias = None
        if self.architecture.has_bias(parts[0]):
            bias = torch.cat([source.tensor(f"{part}.bias") for part in parts])
        with g.scope(group.rsplit(".", 1)[1]):
            return self.linear(
                g, f"{prefix}.{group}", x, lambda: torch.cat([source.tensor(f"{part}.weight") for part in parts]), bias
            )

    def _project_qkv(
        self, g: GraphBuilder, source: TensorSource, prefix: str, x: ir.Value, attend: Attention, layer: int
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """q, k and v where attention takes them. A norm of q and k may follow their rotation, which then is done here."""
        a = self.architecture
        fused = self._linear(g, source, prefix, "self_attn.qkv_proj", x)
        if a.qk_norm is None:  # nothing but attention reads them, so they are placed at once
            return self._split_qkv(g, attend.place(fused))
        q, k, v = self._split_qkv(g, fused)
        if a.qk_norm_after_rope:
            q, k = attend.rotate(layer, q, a.num_attention_heads), attend.rotate(layer, k, a.num_key_value_heads)
        q = self._head_norm(g, source, f"{prefix}.self_attn.q_norm", q, a.num_attention_heads)
        k = self._head_norm(g, source, f"{prefix}.self_attn.k_norm", k, a.num_key_value_heads)
        return attend.place(q), attend.place(k), attend.place(v)

    def _split_qkv(self, g: GraphBuilder, fused: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        a = self.architecture
        sizes = g.constant([a.query_size, a.key_value_size, a.key_value_size], np.int64)
        q, k, v = g.op("Split", fused, sizes, outputs=3, axis=-1)
        return q, k, v

    def _head_norm(self, g: GraphBuilder, source: TensorSource, name: str, x: ir.Value, heads: int) -> Any:
        if self.architecture.qk_norm == "all":
            return self._norm(g, source, name, x, None)[0]
        split = g.op("Reshape", x, g.constant([0, 0, heads, self.architecture.head_dim], np.int64))
        normed, _ = self._norm(g, source, name, split, None)
        return g.op("Reshape", normed, g.constant([0, 0, heads * self.architecture.head_dim], np.int64))

    def _mlp(self, g: GraphBuilder, source: TensorSource, prefix: str, x: ir.Value) -> ir.Value:
        fused = self._linear(g, source, prefix, "mlp.gate_up_proj", x)
        gate, up = g.op("Split", fused, outputs=2, axis=-1, num_outputs=2)
        if self.architecture.activation == "gelu_tanh":
            activated = g.op("Gelu", gate, approximate="tanh")
        elif self.attention == "portable":  # TensorRT 10 has no Swish
            activated = g.op("Mul", gate, g.op("Sigmoid", gate))
        else:  # QuickGelu is x * sigmoid(alpha * x), so with alpha 1 it is the SiLU of one node that ONNX Runtime has
            activated = g.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)
        return self._linear(g, source, prefix, "mlp.down_proj", g.op("Mul", activated, up))

    def _select(self, g: GraphBuilder, x: ir.Value, rows: ir.Value) -> Any:
        """Rows of x [B, S, H] -> [B, R, H], per slot of the batch."""
        return g.op("GatherND", x, g.op("Unsqueeze", rows, g.constant([2], np.int64)), batch_dims=1)
