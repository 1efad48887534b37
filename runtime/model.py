"""The public API: load a bundle, generate, stream."""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import fields, replace
from types import TracebackType
from typing import Any, Unpack, overload

from quasar.engines.bundle.bundle import Bundle, open_bundle
from quasar.engines.engine import Engine
from quasar.engines.errors import BundleError, QuasarError, UsageError
from quasar.runtime.answer import Answer, Result
from quasar.runtime.chain.spec import QUANTSPEC, ChainSpec, build_chain, parse_chain
from quasar.runtime.chat import Chat, ChatOptions, Message, Tool, is_messages
from quasar.runtime.defaults import default_params
from quasar.runtime.engines import EnginePool
from quasar.runtime.execution import describe_kernels, kernels_of
from quasar.runtime.generation import Generation
from quasar.runtime.model_options import ModelOptions
from quasar.runtime.prompt import Prompt, ReadPrompt, is_many, prompt_ids
from quasar.runtime.sampler import Sampler
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.scheduler import Scheduler
from quasar.runtime.sequence import Sequence
from quasar.runtime.statistics import Statistics
from quasar.runtime.text import TextStream
from quasar.runtime.tokenizer import Tokenizer
from quasar.runtime.turnstile import CLOSED, Turnstile

NO_TEMPLATE = "tools and chat_template_kwargs go through the chat template; give messages"


def load(bundle: str | os.PathLike[str], chain: str | None = None, **options: Any) -> Model:
    """Load a bundle for generation.

    Args:
        chain: see `ModelOptions.chain`.
        options: the other fields of `ModelOptions`.

    Raises:
        UsageError: no such bundle, chain, engine, provider or option.
        BundleError: what is there is not a whole bundle.
    """
    unknown = set(options) - {field.name for field in fields(ModelOptions)}
    if unknown:
        names = ", ".join(field.name for field in fields(ModelOptions))
        raise UsageError(f"{', '.join(sorted(unknown))}: no such option; there are {names}")
    return load_model(bundle, ModelOptions(chain, **options))


def load_model(bundle: str | os.PathLike[str], options: ModelOptions) -> Model:
    """The same with its options as one object."""
    opened = open_bundle(bundle, options.verify)
    if options.prepacked is not None:
        from quasar.engines.onnxruntime.prepacked import check_prepacked

        engines = choose_chain(opened, options.chain).engines
        check_prepacked(options.prepacked, opened, engines, kernels_of(options, opened))
    return Model(EnginePool(opened, options), options)


def choose_chain(bundle: Bundle, chain: str | None) -> ChainSpec:
    """The chain that was asked for, or the bundle's own.

    Raises:
        UsageError: it is not one, or needs an engine that is not there.
    """
    default = bundle.manifest.default_chain
    try:
        spec = parse_chain(default if chain is None else chain, default)
        entries = [bundle.engine(name) for name in spec.engines]
        if chain is not None and chain.strip() == QUANTSPEC and entries[0].in_own_operators.cache.owner != entries[1].name:
            raise UsageError(
                f"chain {QUANTSPEC}: in {bundle.root}, {entries[0].name} has a cache of its own; export with --cache int4, or "
                f"ask for '{spec}', which is the same without a common cache"
            )
        return spec
    except UsageError as error:
        if chain is not None:
            raise
        # nobody asked for this chain
        raise BundleError(f"{bundle.root}: default_chain cannot be run: {error}") from None


class Model:
    """A loaded bundle with a chain. Use it as a context manager, or close it.

    Any thread may use it: answers share passes as far as there are slots, and wait in order of arrival beyond.

    Args:
        pool: of the engines; closed with the model.

    Raises:
        UsageError: an engine is not there, or cannot be run so.
        BundleError: one cannot be loaded.
    """

    def __init__(self, pool: EnginePool, options: ModelOptions) -> None:
        self._pool = pool
        self.bundle = pool.bundle
        self.options = options
        self.chain = choose_chain(pool.bundle, options.chain)
        lengths = options.draft_lengths(self.chain)
        self._defaults = default_params(pool.bundle, options.generation_config)
        pool.check(self.chain)
        self.tokenizer = Tokenizer(pool.bundle.tokenizer_folder(), pool.bundle.engine(self.chain.target).vocab_size)
        cached = pool.cached(self.chain)
        self.engines: dict[str, Engine] = {name: one.engine for name, one in cached.items()}
        self.verifier = build_chain(self.chain, cached, lengths)
        spec = self.verifier.cached.engine.spec
        self.max_length, self.vocab_size = spec.max_length, spec.vocab_size
        self.scheduler = Scheduler(self.verifier, self.engines, options.sequences, options.prefix_caching)
        self._turnstile = Turnstile(self._step)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the answers that are open, and free the engines. Waits for the pass that runs now."""
        self._turnstile.close(self._free)

    def _free(self) -> None:
        self.scheduler.close(QuasarError(CLOSED))
        self._pool.close()
        self.engines.clear()

    def _step(self) -> None:
        self._pool.claim(self.scheduler)
        self.scheduler.step()

    def step(self) -> bool:
        """Run one round for all open answers; whether there is anything left to do.

        Raises:
            QuasarError: the model is closed.
        """
        self._turnstile.once()
        return bool(self.scheduler.open or self.scheduler.waiting)

    @property
    def kernels(self) -> dict[str, str]:
        """What runs the int8 products of each engine on a CPU: `avx512-vnni`, `avx2`, or `stock` with the reason."""
        return describe_kernels(self.options, self.bundle, self.engines)

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
        """Answer a prompt: text, token ids, or chat messages. A list of prompts gives a list of results, in order.

        Prompts of a list share passes as far as there are slots (`sequences`); one that cannot be answered gives a result
        with the finish reason `error`. Text is taken as it is; only messages go through the chat template. Without `params`
        the bundle's defaults hold; with them, nothing of the bundle does.

        Args:
            chat: what goes with messages, and with them only.

        Raises:
            UsageError: the prompt is empty, does not fit the context, or holds ids outside the vocabulary.
        """
        if messages is not None or not is_many(prompt):
            return self.stream(prompt, params, messages=messages, **chat).finish()
        if chat and not all(is_messages(one) for one in prompt):
            raise UsageError(NO_TEMPLATE)
        return [self._finish(begun) for begun in [self._begin(one, params, chat) for one in prompt]]

    def _begin(self, prompt: Prompt, params: SamplingParams | None, chat: ChatOptions) -> Generation | Exception:
        try:
            read = self.read(prompt, **chat)
        except UsageError as error:
            return error
        return self.answer(read, params)

    @staticmethod
    def _finish(begun: Generation | Exception) -> Result:
        """The result; an error is one, too."""
        error: Exception | None = begun if isinstance(begun, Exception) else None
        if isinstance(begun, Generation):
            try:
                return begun.finish()
            except QuasarError:
                if begun.error is None:
                    raise
                return begun.result
        return Result("", [], "error", Statistics(), error=str(error))

    def stream(
        self,
        prompt: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        messages: Many[Message] | None = None,
        **chat: Unpack[ChatOptions],
    ) -> Generation:
        """As `generate`, piece by piece: iterate over what this gives."""
        return self.answer(self.read(prompt, messages, **chat), params)

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
            raise UsageError(NO_TEMPLATE)
        ids = self.tokenize(asked)
        return ReadPrompt(ids, ids if isinstance(prompt, str) else [])

    def answer(self, prompt: ReadPrompt, params: SamplingParams | None = None) -> Generation:
        """As `stream`, for a prompt that was read before."""
        if not isinstance(params, (SamplingParams, type(None))):
            raise UsageError(f"params is {type(params).__name__}; give SamplingParams")
        if self._turnstile.closed:
            raise QuasarError(CLOSED)
        params = params or self._defaults
        eos = () if params.ignore_eos else self.bundle.manifest.stop_token_ids
        # special tokens have no text that a stop string could be found in
        special = (token for stop in params.stop if (token := self.tokenizer.special_id(stop)) is not None)
        answer = Answer(
            Sequence(list(prompt.ids), Sampler(params, len(prompt.ids), self.options.acceptance)),
            TextStream(self.tokenizer, params.stop, prompt.continued),
            frozenset((*eos, *params.stop_token_ids, *special)),
            min(params.max_new_tokens, self.max_length - len(prompt.ids)),
            params.logprobs,
        )
        self.scheduler.add(answer)
        return Generation(answer, self._turnstile)

    def tokenize(self, prompt: Prompt | Chat) -> list[int]:
        """The ids that a prompt stands for, checked against the vocabulary and the context."""
        ids = prompt_ids(prompt, self.tokenizer, self.vocab_size)
        if len(ids) >= self.max_length:
            raise UsageError(
                f"the prompt has {len(ids)} tokens and the bundle a context of {self.max_length}, one of them for the answer; "
                "shorten it, or export with a larger --max-length"
            )
        return ids
