"""The public API: load a bundle, generate, stream."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from collections.abc import Sequence as Many
from dataclasses import replace
from types import TracebackType
from typing import Any, Unpack, overload

from quasar.engines.engine import Engine
from quasar.engines.errors import QuasarError, UsageError
from quasar.runtime.answer import Answer, Logprob, Result
from quasar.runtime.chain.branches import Branches
from quasar.runtime.chain.cached import CachedTokens
from quasar.runtime.chain.choice import choose_chain
from quasar.runtime.chain.spec import ChainSpec, build_chain
from quasar.runtime.chat import Chat, ChatOptions, Message, Tool, is_messages
from quasar.runtime.defaults import default_params
from quasar.runtime.engines import EnginePool
from quasar.runtime.execution import describe_kernels
from quasar.runtime.generation import Generation, result_of
from quasar.runtime.guided.compiler import Guides
from quasar.runtime.guided.guide import Guide
from quasar.runtime.kept_pool import KeptPool, open_pool
from quasar.runtime.model_options import ModelOptions
from quasar.runtime.prompt import Prompt, ReadPrompt, is_many
from quasar.runtime.reader import NO_TEMPLATE, Reader
from quasar.runtime.sampler import Sampler
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.scheduler import Scheduler
from quasar.runtime.scoring import Scoring, Text, check_text, score_all
from quasar.runtime.sequence import Sequence
from quasar.runtime.speculation import Speculation
from quasar.runtime.text import TextStream
from quasar.runtime.tokenizer import Tokenizer
from quasar.runtime.turnstile import CLOSED, Turnstile


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
        kept = options.pool_path(self.chain)
        self._defaults = default_params(pool.bundle, options.generation_config)
        pool.check(self.chain)
        vocab_size = pool.bundle.engine(self.chain.target).vocab_size
        self.tokenizer = Tokenizer(pool.bundle.tokenizer_folder(), vocab_size)
        self._kept = None if kept is None else KeptPool(open_pool(kept, pool.bundle, vocab_size))
        cached = pool.cached(self.chain)
        self.engines: dict[str, Engine] = {name: one.engine for name, one in cached.items()}
        self.verifier = build_chain(self.chain, cached, lengths, self._kept)
        spec = self.verifier.cached.engine.spec
        self.max_length, self.vocab_size = spec.max_length, spec.vocab_size
        self.scheduler = Scheduler(self.verifier, self.engines, options.sequences, options.prefix_caching)
        self._guides = Guides(self.tokenizer, self.vocab_size, pool.bundle.manifest.stop_token_ids)
        self._reader = Reader(self.tokenizer, self.vocab_size, self.max_length)
        self._branches = Branches(self.chain, self.verifier, self._load)
        self._turnstile = Turnstile(self._step)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the answers that are open, free the engines, and write the pool. Waits for the pass that runs now."""
        self._turnstile.close(self._free)

    def _free(self) -> None:
        self.scheduler.close(QuasarError(CLOSED))
        self._pool.close()
        self.engines.clear()
        if self._kept is not None:
            self._kept.save()

    def _load(self, chain: ChainSpec) -> Mapping[str, CachedTokens]:
        """The caches of another chain's engines, whose seconds count from now on."""
        cached = self._pool.cached(chain)
        self.engines.update((name, one.engine) for name, one in cached.items())
        return cached

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
        """Forget earlier answers, of which `suffix-pool` makes proposals. What the file of a pool holds stays."""
        self.verifier.forget()

    def sampling_params(self, **changes: Any) -> SamplingParams:
        """The parameters that hold where none are given, with `changes` on top, by the names of `SamplingParams`.

        Raises:
            UsageError: a value that has no meaning.
        """
        return replace(self._defaults, **changes)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        speculation: Speculation | None = None,
        **chat: Unpack[ChatOptions],
    ) -> Result: ...
    @overload
    def generate(
        self,
        prompt: Many[Prompt],
        params: SamplingParams | None = None,
        *,
        speculation: Speculation | None = None,
        **chat: Unpack[ChatOptions],
    ) -> list[Result]: ...
    @overload
    def generate(
        self,
        prompt: None = None,
        params: SamplingParams | None = None,
        *,
        messages: Many[Message],
        speculation: Speculation | None = None,
        **chat: Unpack[ChatOptions],
    ) -> Result: ...

    def generate(
        self,
        prompt: Any = None,
        params: SamplingParams | None = None,
        *,
        messages: Many[Message] | None = None,
        speculation: Speculation | None = None,
        **chat: Unpack[ChatOptions],
    ) -> Result | list[Result]:
        """Answer a prompt: text, token ids, or chat messages. A list of prompts gives a list of results, in order.

        Prompts of a list share passes as far as there are slots (`sequences`); one that cannot be answered gives a result
        with the finish reason `error`. Text is taken as it is; only messages go through the chat template. Without `params`
        the bundle's defaults hold; with them, nothing of the bundle does.

        Args:
            speculation: see `answer`.
            chat: what goes with messages, and with them only.

        Raises:
            UsageError: the prompt is empty, does not fit the context, or holds ids outside the vocabulary.
        """
        if messages is not None or not is_many(prompt):
            return self.stream(prompt, params, messages=messages, speculation=speculation, **chat).finish()
        if chat and not all(is_messages(one) for one in prompt):
            raise UsageError(NO_TEMPLATE)
        return [result_of(begun) for begun in [self._begin(one, params, speculation, chat) for one in prompt]]

    def _begin(
        self, prompt: Prompt, params: SamplingParams | None, speculation: Speculation | None, chat: ChatOptions
    ) -> Generation | UsageError:
        try:
            read = self.read(prompt, **chat)
        except UsageError as error:
            return error
        return self.answer(read, params, speculation)

    def stream(
        self,
        prompt: Prompt | None = None,
        params: SamplingParams | None = None,
        *,
        messages: Many[Message] | None = None,
        speculation: Speculation | None = None,
        **chat: Unpack[ChatOptions],
    ) -> Generation:
        """As `generate`, piece by piece: iterate over what this gives."""
        return self.answer(self.read(prompt, messages, **chat), params, speculation)

    def read(
        self,
        prompt: Prompt | None = None,
        messages: Many[Message] | None = None,
        *,
        tools: Many[Tool] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> ReadPrompt:
        """See `Reader.read`."""
        return self._reader.read(prompt, messages, tools, chat_template_kwargs)

    def answer(
        self, prompt: ReadPrompt, params: SamplingParams | None = None, speculation: Speculation | None = None
    ) -> Generation:
        """As `stream`, for a prompt that was read before.

        Args:
            speculation: for this answer, see `prepare`; None for the model's own. The tokens are the same.

        Raises:
            UsageError: a speculation that cannot be, a guide that cannot be followed, or a bias of a token that there is not.
        """
        if not isinstance(params, (SamplingParams, type(None))):
            raise UsageError(f"params is {type(params).__name__}; give SamplingParams")
        if self._turnstile.closed:
            raise QuasarError(CLOSED)
        params = params or self._defaults
        eos = () if params.ignore_eos else self.bundle.manifest.stop_token_ids
        # special tokens have no text that a stop string could be found in
        special = (token for stop in params.stop if (token := self.tokenizer.special_id(stop)) is not None)
        ends = frozenset((*eos, *params.stop_token_ids, *special))
        if beyond := [token for token in params.logit_bias if token >= self.vocab_size]:
            raise UsageError(f"logit_bias: token id {beyond[0]} is outside the vocabulary 0..{self.vocab_size - 1}")
        early = [end for end in ends if end < self.vocab_size]
        guide = None if params.guide is None else self._guides.matcher(params.guide, prompt.ids, params.ignore_eos)
        sampler = Sampler(params, len(prompt.ids), self.options.acceptance, early, guide)
        answer = Answer(
            Sequence(list(prompt.ids), sampler, branch=self.prepare(speculation)),
            TextStream(self.tokenizer, params.stop, prompt.continued),
            ends,
            min(params.max_new_tokens, self.max_length - len(prompt.ids)),
            params.logprobs,
        )
        self.scheduler.add(answer)
        return Generation(answer, self._turnstile)

    def prepare(self, speculation: Speculation | None) -> Hashable:
        """Load what an answer's speculation needs, for `answer`; any thread may.

        Raises:
            UsageError: a chain that cannot run, or ends in another engine.
            BundleError: an engine of it cannot be loaded.
        """
        if speculation is None:
            return None
        chain = None if speculation.chain is None else choose_chain(self.bundle, speculation.chain)
        return self._branches.key(chain, speculation.draft_length)

    def score(self, texts: Many[Text], top: int = 0) -> list[list[Logprob]]:
        """How likely the tokens of texts are to the chain's last engine, each after all that stand before it.

        Texts wait for slots and share passes as answers do. Those that begin alike are read as far as they differ.

        Args:
            top: how many of the likeliest tokens to note at each place.

        Returns:
            of each text, in order, its tokens from `start` on.

        Raises:
            UsageError: a text does not fit the context, or holds ids outside the vocabulary.
        """
        scorings = [Scoring(check_text(text, self.vocab_size, self.max_length), top) for text in texts]
        if self._turnstile.closed:
            raise QuasarError(CLOSED)
        return score_all(scorings, self.options.sequences, self.scheduler.add, self._turnstile.until)

    def prepare_guide(self, guide: Guide | None) -> None:
        """Compile a guide, for `answer`, which else does it; any thread may.

        Raises:
            UsageError: it cannot be followed, or llguidance is not installed.
        """
        if guide is not None:
            self._guides.compile(guide)

    def tokenize(self, prompt: Prompt | Chat) -> list[int]:
        """See `Reader.tokenize`."""
        return self._reader.tokenize(prompt)
