"""Rows of a Ray dataset, answered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import fields, replace
from hashlib import blake2b
from typing import Any

import pyarrow as pa

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import UsageError
from quasar.runtime.answer import Result
from quasar.runtime.generation import Generation, result_of
from quasar.runtime.loading import load_model, named_options
from quasar.runtime.prompt import ReadPrompt
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.serving.limits import usual_sequences
from quasar.runtime.serving.ray.resources import assigned_threads

Asked = tuple[ReadPrompt, SamplingParams] | UsageError
"""What a row asks, or why it cannot be asked."""
PARAMS = frozenset(field.name for field in fields(SamplingParams))


class Predictor:
    """A callable class for `Dataset.map_batches`: each actor loads the bundle once and answers batches of rows.

    Batches are tables of Arrow (`batch_format="pyarrow"`), which keep nulls, lists and structures as they are. A table comes back
    with the columns `generated_text`, `generated_tokens` (ids), `num_input_tokens`, `num_generated_tokens`, `num_rounds`,
    `finish_reason` and `error`. A row that cannot be answered has the finish reason `error` and says why; the others have the
    error "".

    Args:
        bundle: a directory that every node sees under this path; an actor has a working directory of its own.
        params: for all rows; None for the bundle's own.
        prompt: the column with text, token ids, or chat messages. Only messages go through the chat template.
        sampling: a column with what a row changes of the parameters, by the names of `SamplingParams`.
        seed_from: a column with a key of each row. Its seed is made of the key and the parameters' seed, so what a row samples
            does not depend on the rows beside it.
        options: the fields of `ModelOptions`. Where they are not given, `sequences` is what the bundle was exported for, 8 at
            the most, and `threads` is the CPUs that Ray gives the actor.

    Raises:
        UsageError: no such bundle, chain, engine or option.
        BundleError: what is there is not a whole bundle.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        params: SamplingParams | None = None,
        *,
        prompt: str = "prompt",
        sampling: str | None = None,
        seed_from: str | None = None,
        **options: Any,
    ) -> None:
        named = named_options({"threads": assigned_threads()} | options)
        if "sequences" not in options:
            named = replace(named, sequences=usual_sequences(open_bundle(bundle), named))
        self._model = load_model(bundle, named)
        self._params = params or self._model.sampling_params()
        self._prompt = prompt
        self._sampling = sampling
        self._seed_from = seed_from

    def __del__(self) -> None:
        if hasattr(self, "_model"):  # loading may have failed
            self._model.close()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer the rows of a batch.

        Raises:
            UsageError: a column is not there.
        """
        asked = [self._read(row) for row in self._rows(batch)]
        # the longest first: slots run empty at the end of a batch, which is then short
        order = sorted(range(len(asked)), key=lambda number: _length(asked[number]), reverse=True)
        begun = {number: self._begin(asked[number]) for number in order}
        for name, column in _columns([result_of(begun[number]) for number in range(len(asked))]).items():
            there = batch.schema.get_field_index(name)
            batch = batch.append_column(name, column) if there < 0 else batch.set_column(there, name, column)
        return batch

    def _rows(self, batch: pa.Table) -> list[dict[str, Any]]:
        """What is read of each row."""
        if not isinstance(batch, pa.Table):
            raise UsageError(f'a batch is {type(batch).__name__}; give map_batches batch_format="pyarrow"')
        names = [name for name in (self._prompt, self._sampling, self._seed_from) if name is not None]
        if missing := [name for name in names if name not in batch.column_names]:
            raise UsageError(f"rows have no column {missing[0]!r}; there are {', '.join(batch.column_names)}")
        rows: list[dict[str, Any]] = batch.select(names).to_pylist()
        return rows

    def _read(self, row: Mapping[str, Any]) -> Asked:
        prompt = row[self._prompt]
        if prompt is None:
            return UsageError("the row has no prompt")
        try:
            return self._model.read(prompt), self._row_params(row)
        except UsageError as error:
            return error

    def _row_params(self, row: Mapping[str, Any]) -> SamplingParams:
        """The parameters of one row."""
        changes: dict[str, Any] = {}
        if self._seed_from is not None:
            changes["seed"] = row_seed(self._params.seed, row[self._seed_from])
        if self._sampling is not None:
            asked = row[self._sampling] or {}
            if not isinstance(asked, Mapping):
                raise UsageError(f"{self._sampling} is {type(asked).__name__}; give a structure: {{'max_new_tokens': 16}}")
            # in a column of structures, what a row does not have is null
            given = {name: value for name, value in asked.items() if value is not None}
            if unknown := given.keys() - PARAMS:
                raise UsageError(f"{self._sampling}: there is no {min(unknown)}; there are {', '.join(sorted(PARAMS))}")
            changes |= given
        return replace(self._params, **changes)

    def _begin(self, asked: Asked) -> Generation | UsageError:
        if isinstance(asked, UsageError):
            return asked
        try:
            return self._model.answer(*asked)
        except UsageError as error:
            return error


def row_seed(seed: int | None, key: Any) -> int:
    """The seed of a row, below 2^64: BLAKE2b of the seed of all rows and the row's key.

    Raises:
        UsageError: there is no key.
    """
    if key is None:
        raise UsageError("the row has no key to make its seed of")
    return int.from_bytes(blake2b(f"{seed}/{key}".encode(), digest_size=8).digest())


def _length(asked: Asked) -> int:
    return 0 if isinstance(asked, UsageError) else len(asked[0].ids)


def _columns(results: Many[Result]) -> dict[str, pa.Array]:
    """Results as columns; their types are the same in every batch, whatever is in it."""
    counts = [result.statistics for result in results]
    return {
        "generated_text": pa.array([result.text for result in results], pa.string()),
        "generated_tokens": pa.array([result.ids for result in results], pa.list_(pa.int64())),
        "num_input_tokens": pa.array([one.prompt_tokens for one in counts], pa.int64()),
        "num_generated_tokens": pa.array([len(result.ids) for result in results], pa.int64()),
        "num_rounds": pa.array([one.rounds if one.levels else 0 for one in counts], pa.int64()),
        "finish_reason": pa.array([result.finish_reason for result in results], pa.string()),
        "error": pa.array([result.error or "" for result in results], pa.string()),
    }
