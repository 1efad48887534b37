"""Tier 3: a sequence's tokens are the same alone and in any company, whatever joins and leaves beside it."""

from __future__ import annotations

import random
from collections.abc import Sequence as Many
from dataclasses import dataclass

import pytest
from answers import Job, finish, schedule
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import PROMPT, TableEngine, table_chain
from test_table_chains import SAMPLING, chains

from quasar.runtime import scheduler as scheduler_module
from quasar.runtime.answer import Answer
from quasar.runtime.chain.verifier import Verifier
from quasar.runtime.sampler import ACCEPTANCES, Acceptance, Sampler
from quasar.runtime.sequence import Sequence, Turn

# prompts that share beginnings with each other, and with each other's answers
PROMPTS = st.builds(
    lambda length, more: [*PROMPT, *PROMPT][:length] + more,
    st.integers(0, 20),
    st.lists(st.integers(0, 7), min_size=1, max_size=6),
)


@st.composite
def jobs(draw: st.DrawFn, rules: Many[Acceptance] = ("matching",)) -> Job:
    stop_ids = draw(st.frozensets(st.integers(0, 7), max_size=1))
    return Job(draw(PROMPTS), draw(st.integers(1, 20)), draw(SAMPLING), draw(st.sampled_from(rules)), stop_ids)


def check_caches(verifier: Verifier, sequences: Many[Sequence]) -> None:
    """Every engine's slots hold the texts of the sequences that have them, and nothing that was rejected."""
    for level in verifier.levels():
        engine = level.cached.engine
        assert isinstance(engine, TableEngine)
        for sequence in sequences:
            held = level.cached.held(sequence.slot)
            assert held == sequence.tokens[: len(held)] == engine.cache[sequence.slot, : len(held)].tolist()
    for sequence in sequences:
        # the engine whose tokens they are has read all but the last; a prompt as far as it came
        filled = verifier.cached.filled(sequence.slot)
        assert filled == len(sequence.tokens) - 1 if sequence.new_count else filled < len(sequence.tokens)


# ------------------------------------------------------------------------------------------------ rounds


@dataclass
class Player:
    """A job whose sequence takes part in some rounds."""

    job: Job
    sequence: Sequence
    read: int

    def turn(self, numbers: random.Random) -> Turn:
        """A chunk of the prompt, or a round with some limit."""
        text, left = self.sequence, self.job.limit - self.sequence.new_count
        limit = numbers.randint(1, left)
        if text.new_count:
            return Turn(text, limit)
        return Turn(text, limit, numbers.randint(min(self.read + 1, len(text.tokens)), len(text.tokens)))


@settings(max_examples=80, deadline=None)
@given(chains(), st.lists(jobs(), min_size=2, max_size=8), st.integers(1, 4), st.integers(2, 8), st.integers(0, 2**32))
def test_tokens_are_the_same_in_any_rounds(
    chain: tuple[str, list[int | None]], wanted: list[Job], slots: int, max_rows: int, seed: int
) -> None:
    """Any sequences take part in a round, with any chunks of their prompts, and any limits; slots are used again."""
    numbers = random.Random(seed)  # how many are drawn depends on the clock, where draft lengths do
    verifier = table_chain(*chain, max_rows=max_rows, slots=slots)
    free, waiting, playing = list(range(slots)), list(wanted), list[Player]()
    while waiting or playing:
        while waiting and free and (not playing or numbers.random() < 0.5):
            job = waiting.pop()
            sequence = Sequence(list(job.prompt), Sampler(job.params, len(job.prompt)), free.pop())
            verifier.join(sequence)
            playing.append(Player(job, sequence, verifier.cached.filled(sequence.slot)))
        part = numbers.sample(playing, numbers.randint(1, len(playing)))
        turns = [player.turn(numbers) for player in part]
        before = [list(turn.sequence.tokens) for turn in turns]
        rounds = verifier.round(turns)
        assert [turn.sequence.tokens for turn in turns] == before
        for player, turn, done in zip(part, turns, rounds, strict=True):
            within = turn.upto is not None and turn.upto < len(turn.sequence.tokens)
            assert len(done.tokens) == 0 if within else 1 <= len(done.tokens) <= turn.limit
            turn.sequence.tokens.extend(done.tokens)
            player.read = turn.upto or player.read
            if turn.sequence.new_count == player.job.limit or not player.job.stop_ids.isdisjoint(done.tokens):
                new, stops = turn.sequence.new_tokens, player.job.stop_ids
                end = next((i + 1 for i, token in enumerate(new) if token in stops), len(new))
                del turn.sequence.tokens[turn.sequence.prompt_length + end :]
                verifier.leave(turn.sequence)
                assert turn.sequence.new_tokens == player.job.alone()
                free.append(turn.sequence.slot)
                playing.remove(player)
        check_caches(verifier, [player.sequence for player in playing])


# ------------------------------------------------------------------------------------------------ the scheduler


@settings(max_examples=100, deadline=None)
@given(
    chains(),
    st.lists(st.tuples(jobs(ACCEPTANCES), st.integers(0, 12), st.one_of(st.none(), st.integers(0, 9))), min_size=2, max_size=8),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(2, 8),
    st.booleans(),
)
def test_tokens_are_the_same_through_the_scheduler(
    chain: tuple[str, list[int | None]],
    wanted: list[tuple[Job, int, int | None]],
    slots: int,
    beside: int,
    max_rows: int,
    prefix_caching: bool,
) -> None:
    """Answers come at any step, and are cancelled at any later one."""
    verifier = table_chain(*chain, max_rows=max_rows, slots=slots)
    scheduler = schedule(verifier, slots, prefix_caching)
    answers: list[tuple[Job, Answer]] = []
    left = sorted(wanted, key=lambda one: one[1])
    cancels: dict[int, list[Answer]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler_module, "READ_BESIDE", beside)
        for step in range(1000):
            while left and left[0][1] <= step:
                job, _, cancelled = left.pop(0)
                answers.append((job, answer := job.answer()))
                scheduler.add(answer)
                if cancelled is not None:
                    cancels.setdefault(step + cancelled, []).append(answer)
            for answer in cancels.get(step, []):
                answer.cancel()
            if not (left or scheduler.open or scheduler.waiting):
                break
            scheduler.step()
            assert scheduler.open <= slots
            check_caches(verifier, [answer.sequence for answer in scheduler._open])
    for job, answer in answers:
        result = answer.result
        assert answer.done
        assert result.finish_reason != "error", result.error
        assert "".join(piece.text for piece in answer.pieces) == result.text
        assert [token for piece in answer.pieces for token in piece.ids] == result.ids == answer.sequence.new_tokens
        if result.finish_reason != "cancelled":
            assert len(result.ids) == job.limit or result.ids[-1] in job.stop_ids
        if job.rule == "matching" or job.params.greedy:
            assert result.ids == job.alone()[: None if result.finish_reason != "cancelled" else len(result.ids)]


@settings(max_examples=50, deadline=None)
@given(chains(), st.lists(jobs(), min_size=2, max_size=8))
def test_tokens_are_the_same_in_a_context_that_ends(chain: tuple[str, list[int | None]], wanted: list[Job]) -> None:
    """All run until their slots are full."""
    verifier = table_chain(*chain, max_length=32, slots=8)
    scheduler = schedule(verifier, 8)
    for job in wanted:
        job.limit, job.stop_ids = 32 - len(job.prompt), frozenset()
    answers = [job.answer() for job in wanted]
    for answer in answers:
        scheduler.add(answer)
    finish(scheduler)
    assert [answer.result.ids for answer in answers] == [job.alone() for job in wanted]
    assert [len(answer.sequence.tokens) for answer in answers] == [32] * len(answers)
