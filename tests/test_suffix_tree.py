"""Tier 0: the suffix tree against counting by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.runtime.proposers.suffix import SuffixPool
from quasar.runtime.proposers.suffix_tree import Match, SuffixTree

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
