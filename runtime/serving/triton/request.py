"""A request's tensors, read and checked: what to answer, how, and what the responses shall hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quasar.engines.errors import UsageError
from quasar.runtime.guided.guide import Guide, Kind
from quasar.runtime.model import Model
from quasar.runtime.prompt import ReadPrompt
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.serving.request import Order
from quasar.runtime.serving.triton.tensors import ANY, INPUTS, TensorSpec

Tensors = Mapping[str, NDArray[Any]]

PROMPTS = ("text_input", "messages", "token_ids")
CHAT: dict[str, tuple[type, str]] = {
    "messages": (list, '[{"role": "user", "content": "..."}]'),
    "tools": (list, '[{"type": "function", "function": {"name": "..."}}]'),
    "chat_template_kwargs": (dict, '{"enable_thinking": false}'),
}
"""Tensors that hold JSON for the chat template: its type, and an example."""
GUIDED = ("guided_decoding_guide_type", "guided_decoding_guide", "guided_decoding_after")
GUIDES: dict[str, Kind] = {
    "json": "json_object",
    "json_schema": "json_schema",
    "regex": "regex",
    "ebnf_grammar": "lark",
    "lark": "lark",
}
"""Kinds of guides, by the names that TensorRT-LLM has for them, and our own."""
# the names of sampling options here, and of the tensors that carry them
SAMPLING = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "ignore_eos": "ignore_eos",
}
REQUEST_ID = "id"  # of the generate endpoint
OWN = "triton_"
"""Parameters that begin so are the server's own."""


@dataclass(frozen=True)
class TritonOrder(Order):
    """What a request asks for, and what its responses shall hold beside the answer.

    Attributes:
        count_input, count_output: whether responses say how many tokens there were.
    """

    count_input: bool = False
    count_output: bool = False


def read_request(model: Model, tensors: Tensors, parameters: Mapping[str, Any] | None = None) -> TritonOrder:
    """Check a request, turn its prompt into tokens and compile its guide. Touches no engine, so any thread may do it at any time.

    Args:
        tensors: by name, each [1, N] or [N]: numbers, booleans, or strings as UTF-8 bytes.
        parameters: what came with the request beside its tensors, such as JSON fields that are no input.

    Raises:
        UsageError: with the tensor, its value and the fix.
    """
    for name in parameters or {}:
        if not name.startswith(OWN) and name != REQUEST_ID:
            raise UsageError(f"{name}: no input of this model has this name; it has {', '.join(spec.name for spec in INPUTS)}")
    values = {spec.name: _values(spec, tensors[spec.name]) for spec in INPUTS if spec.name in tensors}
    prompt = _read_prompt(model, values)
    return TritonOrder(
        prompt=prompt,
        params=_sampling(model, values),
        echo="" if _flag(values, "exclude_input_in_output", True) else _prompt_text(model, values, prompt),
        stream=_flag(values, "stream", False),
        count_input=_flag(values, "return_num_input_tokens", False),
        count_output=_flag(values, "return_num_output_tokens", False),
    )


def _values(spec: TensorSpec, array: NDArray[Any]) -> list[Any]:
    """The values of a tensor, as Python's own: str, int, float or bool."""
    shape = list(array.shape)
    if (len(shape) == 2 and shape[0] != 1) or not 1 <= len(shape) <= 2:
        raise UsageError(f"{spec.name} has shape {shape}; give [1, {'N' if spec.length == ANY else 1}], one request at a time")
    if spec.length != ANY and shape[-1] != spec.length:
        raise UsageError(f"{spec.name} has {shape[-1]} values; give one")
    flat = array.reshape(-1)
    if spec.kind == "STRING":
        return [_text(spec.name, value) for value in flat]
    if spec.kind == "FP32":
        # the shortest decimal is what the client wrote: 0.7 and not 0.699999988079071
        return [float(str(np.float32(value))) for value in flat]
    values: list[Any] = flat.tolist()
    return values


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 at byte {error.start}; give UTF-8") from None


def _flag(values: Mapping[str, list[Any]], name: str, default: bool) -> bool:
    return bool(values[name][0]) if name in values else default


def _read_prompt(model: Model, values: Mapping[str, list[Any]]) -> ReadPrompt:
    given = [name for name in PROMPTS if name in values]
    if len(given) != 1:
        raise UsageError(f"{' and '.join(given) or 'no prompt'} given; give exactly one of {', '.join(PROMPTS)}")
    name = given[0]
    chat = {tensor: _json(tensor, values[tensor][0]) for tensor in CHAT if tensor in values}
    if chat and name != "messages":
        raise UsageError(f"{' and '.join(chat)} given with {name}, which no chat template is applied to; give messages")
    try:
        if chat:
            return model.read(**chat)
        return model.read(values[name][0] if name == "text_input" else values[name])
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def _json(name: str, text: str) -> Any:
    kind, example = CHAT[name]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name}: not JSON ({error}); give {example}") from None
    if not isinstance(value, kind):
        raise UsageError(f"{name}: give {'a list' if kind is list else 'an object'}: {example}")
    return value


def _prompt_text(model: Model, values: Mapping[str, list[Any]], prompt: ReadPrompt) -> str:
    return values["text_input"][0] if "text_input" in values else model.tokenizer.decode(prompt.ids)


def _sampling(model: Model, values: Mapping[str, list[Any]]) -> SamplingParams:
    given = {option: values[tensor][0] for option, tensor in SAMPLING.items() if tensor in values}
    # clients of TensorRT-LLM send one empty string where they have no stop words
    stop = () if values.get("stop_words") == [""] else tuple(values.get("stop_words", ()))
    guide = _guide(model, *(values.get(name, [""])[0] for name in GUIDED))
    try:
        return model.sampling_params(**given, stop=stop, guide=guide)
    except UsageError as error:
        text = str(error)
        for option, tensor in (("max_new_tokens", "max_tokens"), ("stop holds", "stop_words holds")):
            text = text.replace(option, tensor)
        raise UsageError(text) from None


def _guide(model: Model, kind: str, text: str, after: str) -> Guide | None:
    if not kind:
        if text or after:
            raise UsageError(f"{GUIDED[1] if text else GUIDED[2]} given without {GUIDED[0]}; give one of {', '.join(GUIDES)}")
        return None
    if kind not in GUIDES:
        raise UsageError(f"{GUIDED[0]} is {kind!r}; give one of {', '.join(GUIDES)}")
    try:
        guide = Guide(GUIDES[kind], text, after)
        model.prepare_guide(guide)
    except UsageError as error:
        raise UsageError(f"{GUIDED[1]}: {error}") from None
    return guide
