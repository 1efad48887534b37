"""What the APIs have in common: how tokens are chosen, where an answer ends, and how it is speculated for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quasar.engines.errors import UsageError
from quasar.runtime.model import Model
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.serving.openai.body import Body
from quasar.runtime.serving.openai.errors import RequestError
from quasar.runtime.serving.request import Order
from quasar.runtime.speculation import Speculation, read_speculation

MOST_CHOICES = 16
MOST_STOPS = 16
MOST_BIASES = 300
SEED_BITS = (1 << 64) - 1
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "stop",
    "stop_token_ids", "ignore_eos", "min_tokens", "logit_bias",
)  # fmt: skip
COMMON = (*SAMPLING, "model", "stream", "stream_options", "n", "speculation", "user")
STATISTICS = "statistics"


@dataclass(frozen=True)
class Asked:
    """A request, understood.

    Attributes:
        orders: one for each answer; those of one prompt stand together.
        choices: answers to each prompt.
        stream: as server-sent events.
        usage: in a stream, too.
        statistics: say what speculation did.
        model: the name that the client used.
    """

    orders: Sequence[Order]
    choices: int
    stream: bool
    usage: bool
    statistics: bool
    model: str


def sampling(body: Body, model: Model, **others: Any) -> SamplingParams:
    """Where the body says nothing, the bundle's defaults hold.

    Args:
        others: fields of `SamplingParams` that each API has its own way to say.

    Raises:
        RequestError: a value that has no meaning, with its field.
    """
    given: dict[str, Any] = {
        "temperature": body.number("temperature", None, 0, 100),
        "top_p": body.number("top_p", None, 0, 1),
        "top_k": body.integer("top_k", None, -1, 1 << 31),
        "min_p": body.number("min_p", None, 0, 1),
        "repetition_penalty": body.number("repetition_penalty", None, 0, 100),
        "presence_penalty": body.number("presence_penalty", None, -2, 2),
        "frequency_penalty": body.number("frequency_penalty", None, -2, 2),
        "seed": _seed(body),
        "stop": body.texts("stop", MOST_STOPS) or None,
        "stop_token_ids": body.get("stop_token_ids"),
        "ignore_eos": body.flag("ignore_eos"),
        "min_tokens": body.integer("min_tokens", None),
        "logit_bias": _bias(body, model.vocab_size),
    }
    if given["top_k"] == -1:  # all, as vLLM writes it
        given["top_k"] = 0
    known = {name: value for name, value in {**given, **others}.items() if value is not None}
    try:
        return model.sampling_params(**known)
    except UsageError as error:
        raise RequestError(str(error), param=str(error).partition(" ")[0]) from None


def _seed(body: Body) -> int | None:
    """Any whole number: clients send negative ones, too."""
    value = body.integer("seed", None, -(1 << 63), SEED_BITS)
    return None if value is None else value & SEED_BITS


def _bias(body: Body, vocab_size: int) -> dict[int, float] | None:
    given = body.mapping("logit_bias")
    if given is None:
        return None
    if len(given) > MOST_BIASES:
        body.refuse("logit_bias", f"has {len(given)} entries; give {MOST_BIASES} at the most")
    found: dict[int, float] = {}
    for token, bias in given.items():
        if not token.isascii() or not token.isdigit() or int(token[:20]) >= vocab_size:
            body.refuse("logit_bias", f"{token[:20]!r} is no token id; the vocabulary is 0..{vocab_size - 1}")
        found[int(token)] = bias
    return found


def several(params: SamplingParams, choices: int) -> list[SamplingParams]:
    """The parameters of several answers to one prompt: with a seed, each has one of its own."""
    if params.seed is None:
        return [params] * choices
    return [replace(params, seed=(params.seed + i) & SEED_BITS) for i in range(choices)]


def speculation(body: Body, model: Model) -> tuple[Speculation | None, bool]:
    """(how the answer is speculated for, whether it shall say what came of it). Loads engines that are not there yet.

    Raises:
        RequestError: it cannot be done, with the reason.
    """
    value = body.get("speculation")
    wanted = False
    if isinstance(value, Mapping):
        wanted = Body(value, "speculation.").flag(STATISTICS)
        value = {name: one for name, one in value.items() if name != STATISTICS}
    try:
        read = read_speculation(value)
        model.prepare(read)
    except UsageError as error:
        body.refuse("speculation", str(error).removeprefix(f"{model.bundle.root}: "))  # where it lies is nobody's business
    return read, wanted


def stream_options(body: Body) -> tuple[bool, bool]:
    """(whether to stream, whether to end the stream with usage)"""
    stream, options = body.flag("stream"), body.mapping("stream_options")
    if options is not None and not stream:
        body.refuse("stream_options", "it goes with stream: true")
    return stream, Body(options or {}, "stream_options.").flag("include_usage")
