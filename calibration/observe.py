"""The float model, run one layer at a time, and what its linears see.

Only one layer's float weights are in memory at any time, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from quasar.calibration.groups import GROUPS
from quasar.calibration.source import TensorSource

Hidden = list[torch.Tensor]
"""Hidden states of several token sequences, float32 [S_i, H] each."""


@dataclass(frozen=True)
class Call:
    """A call of a module: its arguments, and the hidden states [n, S, out] that it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor


@dataclass(frozen=True)
class Layer:
    """One decoder layer in float32, with its weights loaded."""

    module: torch.nn.Module

    def run_batch(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [n, S, H] of n sequences -> those after the layer."""
        after: torch.Tensor = self.module(hidden)
        return after

    def weights(self, group: str) -> list[torch.Tensor]:
        """Weights of the linears of a group, [out, in] each."""
        return [self.module.get_submodule(linear).weight for linear in GROUPS[group]]  # type: ignore[misc]

    def run(self, hidden: Sequence[torch.Tensor]) -> Hidden:
        """Hidden states after the layer."""
        return [self.run_batch(x[None])[0] for x in hidden]

    def record(self, hidden: Sequence[torch.Tensor], modules: Collection[str]) -> tuple[Hidden, dict[str, list[Call]]]:
        """(hidden states after the layer, what each of these modules of it was called with, sequence by sequence)."""
        calls: dict[str, list[Call]] = {name: [] for name in modules}

        def record(name: str) -> Callable[..., None]:
            return lambda _, args, kwargs, output: calls[name].append(Call(args, kwargs, output))

        hooks = [self.module.get_submodule(name).register_forward_hook(record(name), with_kwargs=True) for name in calls]
        try:
            return self.run(hidden), calls
        finally:
            for hook in hooks:
                hook.remove()

    def repeat(self, module: str, calls: Sequence[Call]) -> torch.Tensor:
        """Call a module as it was called before: its outputs, [all tokens, out]."""
        again = self.module.get_submodule(module)
        return torch.cat([again(*call.args, **call.kwargs).flatten(0, -2) for call in calls])

    def observe(self, hidden: Sequence[torch.Tensor]) -> tuple[Hidden, dict[str, torch.Tensor]]:
        """(hidden states after the layer, input of each linear as [all tokens, in_features])."""
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in GROUPS}

        def record(name: str) -> Callable[..., None]:
            return lambda _, inputs: seen[name].append(inputs[0].flatten(0, 1))

        hooks = [
            self.module.get_submodule(linears[0]).register_forward_pre_hook(record(name)) for name, linears in GROUPS.items()
        ]
        try:
            after = self.run(hidden)
        finally:
            for hook in hooks:
                hook.remove()
        return after, {name: torch.cat(inputs) for name, inputs in seen.items()}


class FloatModel:
    """The float32 model, streamed.

    Args:
        layers: its decoder layers, hidden states [n, S, H] of n sequences -> those after the layer, without weights; the
            parameters of layer N have the names of the source's without `model.layers.N`.
        norm: what follows them, without weights.
        source: the weights.
    """

    def __init__(self, layers: Sequence[torch.nn.Module], norm: torch.nn.Module, source: TensorSource) -> None:
        self._layers = layers
        self._norm = norm
        self._source = source

    def __len__(self) -> int:
        return len(self._layers)

    @torch.inference_mode()
    def embed(self, sequences: Sequence[Sequence[int]]) -> Hidden:
        """Embedding rows of each sequence of token ids."""
        table = self._source.tensor("model.embed_tokens.weight")
        return [table[torch.tensor(ids)] for ids in sequences]

    @contextmanager
    def layer(self, index: int) -> Iterator[Layer]:
        """Load layer `index`; its weights are freed when the block ends."""
        module = self._layers[index]
        names = module.state_dict().keys()
        prefix = f"model.layers.{index}."
        module.load_state_dict({name: self._source.tensor(prefix + name) for name in names}, assign=True)
        try:
            with torch.inference_mode():
                yield Layer(module)
        finally:
            module.to("meta")

    @torch.inference_mode()
    def final_norm(self, hidden: Sequence[torch.Tensor]) -> Hidden:
        """What lm_head sees."""
        self._norm.load_state_dict({"weight": self._source.tensor("model.norm.weight")}, assign=True)
        return [self._norm(x) for x in hidden]
