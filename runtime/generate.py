"""The public API: load a bundle, generate, stream."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, overload

from quasar.engines.bundle import Bundle, EngineEntry, open_bundle
from quasar.engines.engine import Engine
from quasar.engines.errors import BundleError, QuasarError, UsageError
from quasar.runtime.chain import ChainSpec, build_chain, parse_chain
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.sequence import Sequence
from quasar.runtime.statistics import Statistics, difference
from quasar.runtime.text import TextStream
from quasar.runtime.tokenizer import Message, Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]
Prompt = str | Many[int] | Many[Message]
"""Text, token ids, or chat messages."""

DRAFT_LENGTH = 5


@dataclass(frozen=True)
class Piece:
    """A part of the answer: the text that can be shown now, and the ids that were generated since the last piece."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Result:
    """An answer.

    Attributes:
        text: special tokens left out, cut before a stop string. After a prompt of plain text it goes on where that ends.
        ids: the new tokens, an end token included.
        finish_reason: `stop` (end token or stop string), `length` (max_new_tokens or context full), `cancelled`.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason
    statistics: Statistics


def load(
    bundle: str | os.PathLike[str],
    chain: str | None = None,
    *,
    provider: str = "cpu",
    threads: int = 0,
    verify: bool = False,
    draft_length: int = DRAFT_LENGTH,
    batch_invariant: bool = False,
) -> Model:
    """Load a bundle for generation.

    Args:
        chain: e.g. `int8` or `prompt-lookup > int8`; None for the bundle's own.
        provider: `cpu`, `cuda` or `tensorrt`.
        threads: of one operator; 0 for one per physical core.
        verify: check the hash of every file.
        draft_length: tokens proposed a round, at the most.
        batch_invariant: a token's logits do not depend on how many rows share its pass, to the last bit; without it, a
            chain may decide a near-tie otherwise than its verifier alone. Costs about a seventh of a single-row step.

    Raises:
        UsageError: no such bundle, chain, engine or provider.
        BundleError: what is there is not a whole bundle.
    """
    opened = open_bundle(bundle, verify)
    spec, entry = _choose(opened, chain)
    if entry.backend != "onnxruntime":
        raise UsageError(f"engine {entry.name}: backend {entry.backend!r} is not one that this release runs")
    tokenizer = Tokenizer(opened.tokenizer_folder(), entry.vocab_size)
    from quasar.engines.onnxruntime import OnnxEngine  # here, so that what is wrong with a bundle is said without it

    engine = OnnxEngine(opened.path(entry.graph), entry, provider, threads, batch_invariant)
    return Model(opened, tokenizer, engine, spec, draft_length)


def _choose(bundle: Bundle, chain: str | None) -> tuple[ChainSpec, EngineEntry]:
    """The chain to run, and its engine."""
    try:
        spec = parse_chain(bundle.manifest.default_chain if chain is None else chain)
        return spec, bundle.engine(spec.verifier)
    except UsageError as error:
        if chain is not None:
            raise
        # nobody asked for this chain
        raise BundleError(f"{bundle.root}: default_chain cannot be run: {error}") from None


class Model:
    """A loaded bundle with a chain. One generation runs at a time. Use it as a context manager, or close it."""

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, engine: Engine, chain: ChainSpec, draft_length: int) -> None:
        self.bundle = bundle
        self.tokenizer = tokenizer
        self.chain = chain
        self.engines: dict[str, Engine] = {engine.spec.name: engine}
        self.verifier = build_chain(chain, engine, draft_length)
        self.max_length = engine.spec.max_length
        self.vocab_size = engine.spec.vocab_size
        self._current: Generation | None = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines."""
        for engine in self.engines.values():
            engine.close()
        self.engines.clear()

    @overload
    def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Many[Prompt], params: SamplingParams | None = None) -> list[Result]: ...
    @overload
    def generate(self, prompt: None = None, params: SamplingParams | None = None, *, messages: Many[Message]) -> Result: ...

    def generate(
        self, prompt: Any = None, params: SamplingParams | None = None, *, messages: Many[Message] | None = None
    ) -> Result | list[Result]:
        """Answer a prompt: text, token ids, or chat messages. A list of prompts gives a list of results, one by one.

        Text is taken as it is; only messages go through the chat template.

        Raises:
            UsageError: the prompt is empty, does not fit the context, or holds ids outside the vocabulary.
        """
        if messages is None and _is_many(prompt):
            return [self.stream(one, params).finish() for one in prompt]
        return self.stream(prompt, params, messages=messages).finish()

    def stream(
        self,
        prompt: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        messages: Many[Message] | None = None,
        reuse_cache: bool = False,
    ) -> Generation:
        """As `generate`, piece by piece: iterate over what this gives.

        Args:
            reuse_cache: keep what the last generation left in the cache and this prompt begins with, as a chat does. The
                same prompt may then be cut into other passes than without, and a near-tie be decided otherwise.
        """
        if (prompt is None) == (messages is None):
            raise UsageError("give either a prompt or messages")
        if messages is not None and not _is_chat(messages):
            raise UsageError('messages must be a list of {"role": ..., "content": ...}')
        if not isinstance(params, (SamplingParams, type(None))):
            raise UsageError(f"params is {type(params).__name__}; give SamplingParams")
        if not self.engines:
            raise QuasarError("the model is closed; load it again")
        ids = self.tokenize(prompt if messages is None else messages)
        continued = ids if isinstance(prompt, str) else []
        self._current = Generation(self, ids, params or SamplingParams(), reuse_cache, continued)
        return self._current

    def tokenize(self, prompt: Any) -> list[int]:
        """The ids that a prompt stands for, checked against the vocabulary and the context."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        elif _is_chat(prompt):
            ids = self.tokenizer.encode_chat(prompt)
        elif isinstance(prompt, (bytes, Mapping)) or not hasattr(prompt, "__iter__"):
            raise UsageError(f"the prompt is {type(prompt).__name__}; give text, token ids or a list of messages")
        else:
            ids = [_token_id(part, self.vocab_size) for part in prompt]
        if not ids:
            raise UsageError("the prompt is empty; at least one token is needed")
        if len(ids) >= self.max_length:
            raise UsageError(
                f"the prompt has {len(ids)} tokens and the bundle a context of {self.max_length}, one of them for the answer; "
                "shorten it, or export with a larger --max-length"
            )
        return ids

    def is_current(self, generation: Generation) -> bool:
        """Whether the cache belongs to this generation."""
        return self._current is generation


class Generation:
    """One answer in the making: an iterator of pieces, and their result."""

    def __init__(self, model: Model, prompt: list[int], params: SamplingParams, reuse_cache: bool, continued: list[int]) -> None:
        self._model = model
        self._sequence = Sequence(prompt)
        self._params = params
        self._reuse_cache = reuse_cache
        eos = () if params.ignore_eos else model.bundle.manifest.stop_token_ids
        self._stop_ids = frozenset((*eos, *params.stop_token_ids))
        self._limit = min(params.max_new_tokens, model.max_length - len(prompt))
        self._stream = TextStream(model.tokenizer, params.stop, continued)
        self._text: list[str] = []
        self._reason: FinishReason | None = None
        self._statistics = Statistics(prompt_tokens=len(prompt))
        self._pieces = self._run()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def cancel(self) -> None:
        """End after the round that runs now."""
        self._reason = self._reason or "cancelled"

    def finish(self) -> Result:
        """Run to the end."""
        for _ in self:
            pass
        return self.result

    @property
    def result(self) -> Result:
        """The answer so far; `cancelled` where it did not come to its end."""
        self._statistics.new_tokens = self._sequence.new_count
        return Result("".join(self._text), self._sequence.new_tokens, self._reason or "cancelled", self._statistics)

    def _run(self) -> Iterator[Piece]:
        begin, before = time.perf_counter(), self._engine_seconds()
        statistics, verifier = self._statistics, self._model.verifier
        self._check_current()
        first, statistics.reused_tokens = verifier.prefill(self._sequence, self._reuse_cache)
        prefilled, after_prefill = time.perf_counter(), self._engine_seconds()
        statistics.prefill_seconds = prefilled - begin
        shown = 0.0  # seconds that the consumer of the pieces took
        emitted = [first]
        while True:
            piece = self._take(emitted)
            now, spent = time.perf_counter(), self._engine_seconds()
            statistics.decode_seconds = now - prefilled - shown
            statistics.engine_seconds = difference(spent, before)
            statistics.decode_engine_seconds = difference(spent, after_prefill)
            if piece.text or piece.ids:
                yield piece
                shown += time.perf_counter() - now
            if self._reason is not None:
                return
            self._check_current()
            emitted = verifier.round(self._sequence, self._limit - self._sequence.new_count, statistics)

    def _take(self, emitted: list[int]) -> Piece:
        """Add tokens to the sequence, up to the one that ends it."""
        shown: list[str] = []
        taken: list[int] = []
        for token in emitted:
            taken.append(token)
            self._sequence.tokens.append(token)
            shown.append(self._stream.push(token))
            if self._stream.stopped or token in self._stop_ids:
                self._reason = "stop"
            elif self._sequence.new_count >= self._limit:
                self._reason = "length"
            if self._reason is not None:
                break
        if self._reason is not None and not self._stream.stopped:
            shown.append(self._stream.flush())
        self._text.extend(shown)
        return Piece("".join(shown), taken)

    def _engine_seconds(self) -> dict[str, float]:
        return {name: engine.seconds for name, engine in self._model.engines.items()}

    def _check_current(self) -> None:
        if not self._model.is_current(self):
            raise QuasarError("another generation was started on this model; finish one before you start the next")


def _is_many(prompt: Any) -> bool:
    """Whether this is a list of prompts rather than one."""
    if not isinstance(prompt, (list, tuple)) or not prompt:
        return False
    return all(isinstance(part, str) or (not isinstance(part, Mapping) and hasattr(part, "__len__")) for part in prompt)


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, (list, tuple)) and bool(prompt) and all(isinstance(part, Mapping) for part in prompt)


def _token_id(value: Any, vocab_size: int) -> int:
    if not hasattr(value, "__index__") or isinstance(value, bool):
        raise UsageError(f"token id {value!r} is not an integer")
    token = int(value)
    if not 0 <= token < vocab_size:
        raise UsageError(f"token id {token} is outside the vocabulary 0..{vocab_size - 1}")
    return token
