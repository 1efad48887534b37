"""The public API: load a bundle, generate, stream."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack, overload

from quasar.engines.bundle.bundle import Bundle, open_bundle
from quasar.engines.engine import Engine
from quasar.engines.errors import BundleError, QuasarError, UsageError
from quasar.runtime.chain.spec import ChainSpec, build_chain, parse_chain
from quasar.runtime.chat import Chat, ChatOptions, Message, Tool, is_messages
from quasar.runtime.defaults import GenerationConfig, default_params
from quasar.runtime.engines import EnginePool
from quasar.runtime.execution import Execution
from quasar.runtime.generation import Generation, Result
from quasar.runtime.prompt import Prompt, ReadPrompt, is_many, prompt_ids
from quasar.runtime.sampler import ACCEPTANCES, Acceptance
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.tokenizer import Tokenizer

DraftLength = int | Many[int | None] | None


def load(
    bundle: str | os.PathLike[str],
    chain: str | None = None,
    *,
    backend: str | None = None,
    provider: str | None = None,
    threads: int = 0,
    verify: bool = False,
    draft_length: DraftLength = None,
    batch_invariant: bool = False,
    acceptance: Acceptance = "matching",
    prepacked: Path | None = None,
    generation_config: GenerationConfig = "auto",
) -> Model:
    """Load a bundle for generation.

    Args:
        chain: e.g. `int8`, `prompt-lookup > int8 > float`, or a preset (`plain`, `quasar`, `lossless`, `qspec`); None for the
            bundle's own.
        backend: `onnxruntime`, `tensorrt` or `tensorrt-rtx`; None for what the bundle was exported for, or, where a provider
            is given, ONNX Runtime.
        provider: of ONNX Runtime: `cpu`, `cuda` or `tensorrt`; None for `cpu`.
        threads: of one operator; 0 for one per physical core.
        verify: check the hash of every file.
        draft_length: tokens proposed a round to each verifier, or one number for each of them; None for as many as pay by
            measured cost and acceptance.
        batch_invariant: a token's logits do not depend on how many rows share its pass, to the last bit; without it, a
            chain may decide a near-tie otherwise than its last engine alone. Costs about a seventh of a single-row step.
        acceptance: `matching`: sampled output is the same for every chain that ends in the same engine, and for every draft
            length. `rejection`: accepts more of a sampled draft, but the output is only the same in distribution.
        prepacked: a folder of `quasar.engines.onnxruntime.prepacked`, from which processes share weights.
        generation_config: `auto`: where the caller sets no parameters, sampling is as the model's authors chose, which the
            bundle carries. `off`: it is greedy.

    Raises:
        UsageError: no such bundle, chain, engine or provider.
        BundleError: what is there is not a whole bundle.
    """
    opened = open_bundle(bundle, verify)
    spec = choose_chain(opened, chain)
    lengths = draft_lengths(spec, draft_length)
    if acceptance not in ACCEPTANCES:
        raise UsageError(f"acceptance is {acceptance!r}; it must be one of {', '.join(ACCEPTANCES)}")
    defaults = default_params(opened, generation_config)
    pool = EnginePool(opened, Execution(backend, provider, threads, batch_invariant, prepacked))
    pool.check(spec)
    tokenizer = Tokenizer(opened.tokenizer_folder(), opened.engine(spec.law).vocab_size)
    return Model(pool, tokenizer, spec, lengths, acceptance, defaults)


def choose_chain(bundle: Bundle, chain: str | None) -> ChainSpec:
    """The chain that was asked for, or the bundle's own.

    Raises:
        UsageError: it is not one, or needs an engine that is not there.
    """
    default = bundle.manifest.default_chain
    try:
        spec = parse_chain(default if chain is None else chain, default)
        for name in spec.engines:
            bundle.engine(name)
        return spec
    except UsageError as error:
        if chain is not None:
            raise
        # nobody asked for this chain
        raise BundleError(f"{bundle.root}: default_chain cannot be run: {error}") from None


def draft_lengths(spec: ChainSpec, draft_length: DraftLength) -> list[int | None]:
    """A draft length for every verifier of the chain; None for as many as pay.

    Raises:
        UsageError: a negative one, or not as many as there are verifiers.
    """
    each = draft_length if isinstance(draft_length, Iterable) else [draft_length] * len(spec.verifiers)
    lengths: list[Any] = list(each)
    if len(lengths) != len(spec.verifiers):
        raise UsageError(
            f"draft_length has {len(lengths)} numbers and the chain {spec} {len(spec.verifiers)} verifiers; give one, or one each"
        )
    for length in lengths:
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 0):
            raise UsageError(f"draft_length is {length!r}; it must be 0 or more, or None for as many as pay")
    return lengths


class Model:
    """A loaded bundle with a chain. One generation runs at a time. Use it as a context manager, or close it."""

    def __init__(
        self,
        pool: EnginePool,
        tokenizer: Tokenizer,
        chain: ChainSpec,
        lengths: Many[int | None],
        acceptance: Acceptance,
        defaults: SamplingParams = SamplingParams(),  # noqa: B008  it is frozen
    ) -> None:
        self._pool = pool
        self.bundle = pool.bundle
        self.tokenizer = tokenizer
        self.chain = chain
        self._lengths = lengths
        self.acceptance = acceptance
        self._defaults = defaults
        slots = pool.slots(chain)
        self.engines: dict[str, Engine] = {name: slot.engine for name, slot in slots.items()}
        self.verifier = build_chain(chain, slots, lengths)
        self.max_length = self.verifier.slot.engine.spec.max_length
        self.vocab_size = self.verifier.slot.engine.spec.vocab_size

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines."""
        self._pool.close()
        self.engines.clear()

    def sibling(self) -> Model:
        """Another model on the same weights, for one more sequence at the same time: caches and experience of its own.

        Models that are siblings take turns, pass by pass, in one thread. Close each of them.

        Raises:
            UsageError: the backend keeps one cache to its weights.
        """
        if not self.engines:
            raise QuasarError("the model is closed; load it again")
        return Model(self._pool.sibling(), self.tokenizer, self.chain, self._lengths, self.acceptance, self._defaults)

    def forget(self) -> None:
        """Forget earlier answers, of which `suffix-pool` makes proposals."""
        self.verifier.forget()

    def sampling_params(self, **changes: Any) -> SamplingParams:
        """The parameters that hold where none are given, with `changes` on top, by the names of `SamplingParams`.

        Raises:
            UsageError: a value that has no meaning.
        """
        return replace(self._defaults, **changes)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, params: SamplingParams | None = None, **chat: Unpack[ChatOptions]
    ) -> Result: ...
    @overload
    def generate(
        self, prompt: Many[Prompt], params: SamplingParams | None = None, **chat: Unpack[ChatOptions]
    ) -> list[Result]: ...
    @overload
    def generate(
        self,
        prompt: None = None,
        params: SamplingParams | None = None,
        *,
        messages: Many[Message],
        **chat: Unpack[ChatOptions],
    ) -> Result: ...

    def generate(
        self,
        prompt: Any = None,
        params: SamplingParams | None = None,
        *,
        messages: Many[Message] | None = None,
        **chat: Unpack[ChatOptions],
    ) -> Result | list[Result]:
        """Answer a prompt: text, token ids, or chat messages. A list of prompts gives a list of results, one by one.

        Text is taken as it is; only messages go through the chat template. Without `params` the bundle's defaults hold; with
        them, nothing of the bundle does.

        Args:
            chat: what goes with messages, and with them only.

        Raises:
            UsageError: the prompt is empty, does not fit the context, or holds ids outside the vocabulary.
        """
        if messages is None and is_many(prompt):
            return [self.stream(one, params, **chat).finish() for one in prompt]
        return self.stream(prompt, params, messages=messages, **chat).finish()

    def stream(
        self,
        prompt: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        messages: Many[Message] | None = None,
        reuse_cache: bool = False,
        **chat: Unpack[ChatOptions],
    ) -> Generation:
        """As `generate`, piece by piece: iterate over what this gives.

        Args:
            reuse_cache: keep what the last generation left in the cache and this prompt begins with, as a chat does. The
                same prompt may then be cut into other passes than without, and a near-tie be decided otherwise.
        """
        return self.answer(self.read(prompt, messages, **chat), params, reuse_cache=reuse_cache)

    def read(
        self,
        prompt: Prompt | None = None,
        messages: Many[Message] | None = None,
        *,
        tools: Many[Tool] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> ReadPrompt:
        """A prompt's tokens, for `answer`. Touches no engine, so any thread may do it at any time.

        Args:
            tools, chat_template_kwargs: see `ChatOptions`.

        Raises:
            UsageError: the prompt is empty, does not fit the context, or holds ids outside the vocabulary.
        """
        if (prompt is None) == (messages is None):
            raise UsageError("give either a prompt or messages")
        asked: Any = prompt if messages is None else messages
        if messages is not None or is_messages(prompt):
            asked = Chat(asked, tools, chat_template_kwargs)
        elif tools is not None or chat_template_kwargs is not None:
            raise UsageError("tools and chat_template_kwargs go through the chat template; give messages")
        ids = self.tokenize(asked)
        return ReadPrompt(ids, ids if isinstance(prompt, str) else [])

    def answer(self, prompt: ReadPrompt, params: SamplingParams | None = None, *, reuse_cache: bool = False) -> Generation:
        """As `stream`, for a prompt that was read before."""
        if not isinstance(params, (SamplingParams, type(None))):
            raise UsageError(f"params is {type(params).__name__}; give SamplingParams")
        if not self.engines:
            raise QuasarError("the model is closed; load it again")
        generation = Generation(self, list(prompt.ids), params or self._defaults, reuse_cache, prompt.continued)
        self._pool.user = generation
        return generation

    def tokenize(self, prompt: Prompt | Chat) -> list[int]:
        """The ids that a prompt stands for, checked against the vocabulary and the context."""
        ids = prompt_ids(prompt, self.tokenizer, self.vocab_size)
        if len(ids) >= self.max_length:
            raise UsageError(
                f"the prompt has {len(ids)} tokens and the bundle a context of {self.max_length}, one of them for the answer; "
                "shorten it, or export with a larger --max-length"
            )
        return ids

    def is_current(self, generation: Generation) -> bool:
        """Whether the caches belong to this generation."""
        return self._pool.user is generation
