"""The script that times several clients beside another system: its arithmetic, and waves of a real bundle."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from peer_load import Quasar, cut, figures, wave


def test_decode_counts_what_comes_while_all_clients_are_past_their_prompt() -> None:
    stamps = [[(0.1, 1), (0.3, 2), (0.5, 1), (0.7, 3)], [(0.3, 1), (0.5, 1), (0.8, 2)]]
    found = figures(stamps)
    assert found["tokens"] == 11
    assert found["decode"] == pytest.approx((1 + 3 + 1) / (0.7 - 0.3))
    assert found["all"] == pytest.approx(11 / 0.8)
    assert found["first"] == pytest.approx(0.2)
    assert found["between"] == pytest.approx(0.2)
    assert figures([[(0.1, 2)], [(0.2, 1), (0.3, 1)]])["decode"] is None  # one was done before the other began


def test_prompts_of_a_wave_are_cut_to_the_context_and_differ() -> None:
    prompts = [[1, 2, 3], [4, 5], [6]]
    assert cut(prompts, 2, 2, 0) == [[6], [1, 2, 3]]
    assert cut(prompts, 1, 2, 4) == [[4, 5, 6, 1], [6, 1, 2, 3]]


def test_a_wave_of_a_bundle_gives_every_client_all_its_tokens(demo_bundle: Path) -> None:
    system = Quasar({"path": str(demo_bundle), "chain": "prompt-lookup > int8", "clients": 2, "threads": 0})
    found = wave(system, [[5, 6, 7, 8], [9, 10, 11]], 6)
    assert found["tokens"] == 12
    assert found["all"] > 0
