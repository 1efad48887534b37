"""Tier 0: the suffix tree against counting by hand, and what is proposed from it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.runtime.proposers.suffix import Suffix, SuffixPool
from quasar.runtime.proposers.suffix_tree import Match, SuffixTree
from quasar.runtime.sampler import Sampler
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.sequence import Sequence

TEXTS = st.one_of(*(st.lists(st.integers(0, size), max_size=30) for size in (0, 1, 3)))
DEPTHS = st.sampled_from([1, 2, 3, 5, 64])
EDITS = st.lists(st.tuples(st.integers(0, 8), TEXTS), min_size=1, max_size=5)
"""Tokens taken back, and those added then."""
Text = tuple[int, ...]


def occurrences(texts: list[list[int]], depth: int) -> Counter[Text]:
    """How often every string of up to `depth` tokens occurs."""
    return Counter(
        tuple(text[i : i + size]) for text in texts for size in range(1, depth + 1) for i in range(len(text) - size + 1)
    )


def find(tree: SuffixTree, string: Text) -> Match | None:
    match = tree.root_match(string[0])
    for token in string[1:]:
        if match is None:
            return None
        match = match.follow(token)
    return match


def check(tree: SuffixTree, texts: list[list[int]], depth: int) -> None:
    """Every string that occurs is found with its count, and none that does not."""
    counts = occurrences(texts, depth)
    for string, count in counts.items():
        match = find(tree, string)
        assert match is not None, string
        assert match.length == len(string)
        # a node without children goes on in one text only: its other occurrences ended there, or none was followed yet
        assert (1 if match.ahead else match.node.count) == count, string
    for string in {(*string[:-1], 9) for string in counts} | {(*string, 9) for string in counts if len(string) < depth}:
        assert find(tree, string) is None
    for string in {(*string, token) for string in counts for token in range(4) if len(string) < depth}:
        assert (find(tree, string) is not None) == (string in counts), string


def grow(tree: SuffixTree, text: list[int]) -> list[int]:
    tree.begin()
    for token in text:
        tree.append(token)
    return tree.text


# ------------------------------------------------------------------------------------------------ the tree


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), DEPTHS)
def test_counts_are_those_of_a_full_scan(texts: list[list[int]], depth: int) -> None:
    tree = SuffixTree(depth)
    for text in texts:
        grow(tree, text)
    check(tree, texts, depth)


@settings(max_examples=100, deadline=None)
@given(TEXTS, EDITS, DEPTHS)
def test_a_rewound_tree_counts_what_is_left(earlier: list[int], edits: list[tuple[int, list[int]]], depth: int) -> None:
    tree, text = SuffixTree(depth), []
    grow(tree, earlier)
    tree.begin()
    for taken_back, more in edits:
        del text[max(len(text) - taken_back, 0) :]
        tree.rewind(len(text))
        text.extend(more)
        for token in more:
            tree.append(token)
        assert tree.text == text
        check(tree, [earlier, text], depth)


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS, DEPTHS)
def test_matches_are_the_ends_of_the_text_that_occur_elsewhere_too(earlier: list[int], text: list[int], depth: int) -> None:
    tree = SuffixTree(depth)
    grow(tree, earlier)
    grow(tree, text)
    counts = occurrences([earlier, text], depth)
    expected = [size for size in range(min(depth - 1, len(text)), 0, -1) if counts[tuple(text[len(text) - size :])] > 1]
    assert [match.length for match in tree.matches()] == expected
    assert [match.node.count for match in tree.matches()] == [counts[tuple(text[len(text) - size :])] for size in expected]


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6), DEPTHS, st.data())
def test_a_removed_text_leaves_the_others(texts: list[list[int]], depth: int, data: st.DataObject) -> None:
    tree = SuffixTree(depth)
    kept = [grow(tree, text) for text in texts]
    tree.begin()
    while kept:
        tree.remove(kept.pop(data.draw(st.integers(0, len(kept) - 1))))
        check(tree, kept, depth)
    assert tree.root_match(0) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=8), st.integers(1, 40), DEPTHS)
def test_the_pool_holds_the_newest_outputs_that_fit(outputs: list[list[int]], limit: int, depth: int) -> None:
    pool = SuffixPool(limit, depth)
    held: list[list[int]] = []
    for output in outputs:
        pool.add(output)
        held.append(output[:limit])
        while sum(map(len, held)) > limit:
            held.pop(0)
        check(pool.tree, held, depth)


@settings(max_examples=100, deadline=None)
@given(TEXTS.filter(bool), st.integers(1, 6))
def test_probabilities_are_shares_of_what_followed(text: list[int], steps: int) -> None:
    tree = SuffixTree()
    grow(tree, text)
    counts = occurrences([text], len(text))
    for match in tree.matches():
        string, probability = tuple(text[len(text) - match.length :]), 1.0
        for (token, shown), _ in zip(match.continuation(), range(steps), strict=False):
            followed = [counts[(*string, other)] for other in range(4)]
            if not any(followed):
                break  # past the end of the text
            assert followed[token] == max(followed)
            probability *= followed[token] / sum(followed)
            assert shown == pytest.approx(probability)
            string = (*string, token)


# ------------------------------------------------------------------------------------------------ the proposals


def sequence(tokens: list[int], prompt_length: int = 0) -> Sequence:
    made = Sequence(tokens[:prompt_length], Sampler(SamplingParams(), prompt_length))
    made.tokens.extend(tokens[prompt_length:])
    return made


def propose(proposer: Suffix, tokens: list[int], limit: int = 32) -> list[int]:
    return [draft.token for draft in proposer.propose(sequence(list(tokens)), limit)]


def pooled(*outputs: list[int]) -> Suffix:
    pool = SuffixPool()
    for output in outputs:
        pool.add(output)
    return Suffix(pool)


def test_a_match_suggests_as_many_tokens_as_it_is_long() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3]
    assert propose(Suffix(), text) == [4, 5, 6]
    assert propose(Suffix(), [8, *text[1:], 4]) == [5, 6, 7]
    assert propose(Suffix(), text, limit=2) == [4, 5]
    assert propose(Suffix(), text, limit=0) == []


@pytest.mark.parametrize("text", [[], [3], [1, 2, 3, 4]])
def test_what_was_never_there_suggests_nothing(text: list[int]) -> None:
    assert propose(Suffix(), text) == []


def test_the_most_frequent_continuation_is_followed() -> None:
    assert propose(Suffix(), [1, 2, 8, 1, 2, 7, 1, 2, 7, 0, 1, 2], limit=1) == [7]


def test_past_the_end_of_the_text_the_match_repeats_itself() -> None:
    assert propose(Suffix(), [1, 2, 3, 1, 2, 3, 1, 2]) == [3, 1, 2, 3, 1]


@pytest.mark.parametrize(("followers", "expected"), [(10, 1), (11, 0)])
def test_a_path_ends_where_its_probability_falls_below_a_tenth(followers: int, expected: int) -> None:
    text = [token for i in range(followers) for token in (1, 10 + i)]
    assert len(propose(Suffix(), [*text, 1])) == expected


def test_a_likely_short_match_beats_an_unlikely_long_one() -> None:
    """After (1, 2, 3) five tokens came, each once; the pool knows but one way on from (2, 3)."""
    text = [token for i in range(5) for token in (1, 2, 3, 10 + i, 20 + i, 30 + i)] + [1, 2, 3]
    assert propose(Suffix(), text)[0] in range(10, 15)
    assert propose(pooled([2, 3, 7, 7]), text) == [7, 7]


def test_a_tie_goes_to_the_longer_match() -> None:
    """Four tokens of probability 1/2 against two that are sure."""
    text = [3, 4, 7, 7, 0, 1, 2, 3, 4]
    assert propose(Suffix(), text) == [7, 7]
    assert propose(pooled([1, 2, 3, 4, 5, 5, 5, 5], [1, 2, 3, 4, 6, 6, 6, 6]), text) in ([5] * 4, [6] * 4)


def test_a_tie_under_the_limit_goes_to_the_longer_match() -> None:
    assert propose(pooled([1, 2, 3, 4, 5, 5]), [3, 4, 7, 7, 0, 1, 2, 3, 4], limit=2) == [5, 5]


def test_a_shorter_match_with_the_same_score_is_not_followed() -> None:
    """1/2 four times for the text's (1, 2, 3, 4), and 1, 1/2, 1/2 for the pool's (2, 3, 4)."""
    text = [1, 2, 3, 4, 5, 5, 5, 5, 9, 1, 2, 3, 4, 6, 6, 6, 6, 0, 1, 2, 3, 4]
    outputs = [9, 2, 3, 4, 7, 8, 8], [9, 2, 3, 4, 7, 6, 6]
    assert propose(pooled(*outputs), [0, 2, 3, 4])[0] == 7
    assert propose(pooled(*outputs), text) == propose(Suffix(), text) == [5, 5, 5, 5]


def test_a_tie_of_equal_length_goes_to_the_text_before_the_pool() -> None:
    assert propose(pooled([1, 2, 8, 8]), [1, 2, 7, 7, 1, 2]) == [7, 7]


def test_the_pool_is_asked_where_the_text_says_nothing() -> None:
    assert propose(pooled([1, 2, 8, 9]), [1, 2]) == [8, 9]


def test_only_the_output_of_an_ended_sequence_is_remembered() -> None:
    proposer = Suffix(SuffixPool())
    first = sequence([1, 2, 3, 5, 6, 7], prompt_length=3)
    proposer.begin(first, reuse=False)
    assert propose(proposer, [5]) == []
    proposer.begin(first, reuse=False)
    proposer.end(first)
    for text, expected in (([1, 2], []), ([5, 6], [7])):
        proposer.begin(sequence(text), reuse=False)
        assert propose(proposer, text, 1) == expected


def test_the_grade_is_the_length_of_the_match_and_the_probability_in_quarters() -> None:
    drafts = list(Suffix().propose(sequence([1, 2, 7, 7, 0, 1, 2, 8, 8, 0, 1, 2, 7, 7, 4, 1, 2]), 32))
    assert [draft.grade for draft in drafts] == [(2, 3), (3, 3)]
    assert all(draft.distribution is None for draft in drafts)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, max_size=3), TEXTS, EDITS, st.booleans())
def test_a_rewound_proposer_equals_a_fresh_one(
    outputs: list[list[int]], text: list[int], edits: list[tuple[int, list[int]]], with_pool: bool
) -> None:
    def fresh() -> Suffix:
        return pooled(*outputs) if with_pool else Suffix()

    proposer, text = fresh(), list(text)
    proposer.begin(sequence(text), reuse=True)
    for taken_back, more in edits:
        propose(proposer, text)
        del text[max(len(text) - taken_back, 0) :]
        proposer.rewind(len(text))
        text.extend(more)
        again, other = list(proposer.propose(sequence(text), 20)), fresh()
        assert again == list(other.propose(sequence(text), 20))
        assert [[match.length for match in ends] for ends in proposer._pooled] == [
            [match.length for match in ends] for ends in other._pooled
        ]
        assert again == list(proposer.propose(sequence(text), 20))


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=3), TEXTS, DEPTHS)
def test_the_place_in_the_pool_is_every_end_of_the_text_that_occurs_there(
    outputs: list[list[int]], text: list[int], depth: int
) -> None:
    pool = SuffixPool(depth=64)
    for output in outputs:
        pool.add(output)
    proposer = Suffix(pool)
    proposer.begin(sequence(list(text)), reuse=False)
    counts = occurrences(outputs, 30)
    expected = [size for size in range(len(text), 0, -1) if tuple(text[len(text) - size :]) in counts]
    assert [match.length for match in (proposer._pooled[-1] if text else [])] == expected
