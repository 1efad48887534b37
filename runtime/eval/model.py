"""A model as the lm-evaluation-harness sees it: texts are scored and answered as its own `hf` model does."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from quasar.engines.errors import UsageError
from quasar.runtime.chat import Chat
from quasar.runtime.model import Model
from quasar.runtime.prompt import ReadPrompt
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.scoring import Text

MAX_NEW_TOKENS = 256
"""Of an answer, where a task says nothing: as of the harness."""
TEXTS_OF_A_SLOT = 8
"""Texts that are scored together, for each slot: more would be read no faster, and progress is seen between them."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""What a task may ask of sampling, by the names of transformers."""
HARMLESS = {"num_beams": 1, "max_length": None, "use_cache": True, "early_stopping": False}
"""What changes nothing at these values; None for any."""


class QuasarLM(TemplateLM):  # type: ignore[misc]
    """A model for `lm_eval.simple_evaluate(model=QuasarLM(model), tasks=[...])`.

    Args:
        model: its last engine scores, its chain answers; stays open.
        template_options: variables of the chat template.
    """

    def __init__(self, model: Model, template_options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._model = model
        self._template_options = template_options
        self._cut_texts = 0

    @property
    def max_length(self) -> int:
        """Positions of the context."""
        return self._model.max_length

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        tokenizer, manifest = self._model.tokenizer, self._model.bundle.manifest
        named = None if tokenizer.eos_token is None else tokenizer.token_id(tokenizer.eos_token)
        return manifest.stop_token_ids[0] if named is None else named

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        tokenizer = self._model.tokenizer
        named = None if tokenizer.bos_token is None else tokenizer.token_id(tokenizer.bos_token)
        return self.eot_token_id if named is None else named

    @property
    def tokenizer_name(self) -> str:
        """Which chat template there is, for caches of requests."""
        return str(self._model.bundle.root)

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the model."""
        bundle, chain = self._model.bundle, self._model.chain
        entry = bundle.engine(chain.target)
        return {
            "model": bundle.manifest.model["id"],
            "bundle": str(bundle.root),
            "chain": str(chain),
            "precision": entry.precision,
            "max_length": self.max_length,
            "cut_texts": self._cut_texts,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; special tokens that the text begins with are not put there twice."""
        return self._model.tokenizer.encode(string, special_tokens=add_special_tokens is not False)

    def apply_chat_template(self, chat_history: Many[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a chat; without the beginning of an answer, it ends where the last message does."""
        text = self._model.tokenizer.render(Chat(chat_history, options=self._template_options), add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        place = text.rfind(last.strip())
        if place < 0:
            raise UsageError("chat template: it does not write the last message as it is, so none can be begun for the model")
        kept = last.lstrip()  # some templates take spaces off the end
        return text[:place] + (kept if text.startswith(kept, place) else last.strip())

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows as long as the context."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for (string,) in (request.args for request in requests):
            of_text = get_rolling_token_windows(self.tok_encode(string), self.prefix_token_id, self.max_length, 1)
            disjoint = [(None, *make_disjoint_window(window)) for window in of_text]
            windows += disjoint
            counts.append(len(disjoint))
        scored = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        return [sum(next(scored)[0] for _ in range(count)) for count in counts]

    def _loglikelihood_tokens(
        self, requests: Many[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether all of it would be answered greedily) of (anything, context, continuation)."""
        texts = [self._text(context, continuation) for _, context, continuation in requests]
        order = sorted(range(len(texts)), key=lambda i: list(texts[i].ids))  # what begins alike comes together
        together = TEXTS_OF_A_SLOT * self._model.options.sequences
        found: dict[int, tuple[float, bool]] = {}
        with _bar("scoring", len(texts), disable_tqdm) as bar:
            for first in range(0, len(order), together):
                part = order[first : first + together]
                for i, scored in zip(part, self._model.score([texts[i] for i in part], top=1), strict=True):
                    found[i] = sum(at.logprob for at in scored), all(at.token == at.top[0][0] for at in scored)
                bar.update(len(part))
        return [found[i] for i in range(len(texts))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, cut before the first of a task's stop strings. Those that are sampled are the same every time."""
        asked = [self._asked(request.args[0], request.args[1], seed) for seed, request in enumerate(requests)]
        generations = [self._model.answer(prompt, params) for prompt, params in asked]
        texts = []
        with _bar("answering", len(requests), disable_tqdm) as bar:
            for generation in generations:
                texts.append(generation.finish().text)
                bar.update()
        return texts

    def _asked(self, context: str, options: dict[str, Any], seed: int) -> tuple[ReadPrompt, SamplingParams]:
        """The arguments of `Model.answer`. What a task leaves open is as the model's authors chose, which `hf` does, too."""
        asked = dict(normalize_gen_kwargs(options, MAX_NEW_TOKENS))
        count, stop, sampled = (asked.pop(name) for name in ("max_gen_toks", "until", "do_sample"))
        sampling = {"temperature": float(sampled)} | {name: asked.pop(name) for name in SAMPLING if name in asked}
        for name, value in asked.items():
            if name not in HARMLESS or HARMLESS[name] not in (None, value):
                known = ", ".join(("until", "max_gen_toks", "do_sample", *SAMPLING))
                raise UsageError(f"generation_kwargs: {name} is {value!r}, which is not supported; there are {known}")
        if count >= self.max_length:
            raise UsageError(
                f"generation_kwargs: max_gen_toks is {count} and the bundle has a context of {self.max_length}; ask for less "
                "(--gen_kwargs max_gen_toks=N), or export with a larger --max-length"
            )
        stop = tuple(text for text in stop if text)
        params = self._model.sampling_params(max_new_tokens=count, stop=stop, seed=seed, **sampling)
        ids = self.tok_encode(context) or [self.prefix_token_id]
        return ReadPrompt(self._end_of(ids, self.max_length - count), []), params

    def _text(self, context: list[int], continuation: list[int]) -> Text:
        if len(continuation) > self.max_length:
            raise UsageError(
                f"{len(continuation)} tokens are to be scored together and the bundle has a context of {self.max_length}; export "
                "with a larger --max-length"
            )
        ids = self._end_of(context + continuation, self.max_length + 1)
        return Text(ids, len(ids) - len(continuation))

    def _end_of(self, ids: list[int], most: int) -> list[int]:
        """As much of a text as fits, from its end on: the harness' `hf` model cuts so, too."""
        self._cut_texts += len(ids) > most
        return ids[-most:]


def _bar(what: str, total: int, disable: bool) -> Any:
    # without a terminal a bar is only noise in a log
    return tqdm(desc=f"{what:<10}", total=total, file=sys.stderr, disable=disable or None)
