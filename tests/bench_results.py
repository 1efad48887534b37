"""Bench results to test reports with: as a run writes them, with many chains, and with as little as there can be."""

from __future__ import annotations

import copy
from typing import Any

DECODE = {
    "prompt-lookup > int8": 55.2, "int4 > int8": 41.3, "prompt-lookup > int4 > int8": 47.9, "int8": 38.6,
    "prompt-lookup > float": 21.7, "float": 12.9,
}  # fmt: skip
STEPS = {
    "float": {"1": 77.0, "2": 79.4, "4": 83.0, "6": 86.6},
    "int8": {"1": 25.2, "2": 27.1, "4": 29.8, "6": 32.5},
    "int4": {"1": 17.4, "2": 19.9, "4": 26.2, "6": 33.8},
}


def spread(middle: float, width: float = 0.02, key: str = "median") -> dict[str, float]:
    return {key: middle, "low": middle * (1 - width), "high": middle * (1 + width)}


def ratio(below: str, times: float) -> dict[str, Any]:
    return {"chain": below, "decode": spread(times), "overall": spread(times * 0.9)}


def level(engine: str, *, accepts: bool, shift: float = 0.0) -> dict[str, Any]:
    return {
        "engine": engine,
        "rounds": 913,
        "proposed": 1207 if accepts else 0,
        "accepted": 381 if accepts else 0,
        "acceptance_per_position": [0.52 - shift, 0.41 - shift, 0.33 - shift, 0.24 - shift, 0.19 - shift] if accepts else [],
        "step_ms": {rows: value * (1 + shift / 4) for rows, value in STEPS[engine].items()},
    }


def chain_result(text: str, decode: float, shift: float = 0.0) -> dict[str, Any]:
    engines = [part for part in text.split(" > ") if part in STEPS]
    target, lone = engines[-1], " > " not in text
    accepting = [not lone and (place > 0 or text.startswith("prompt")) for place in range(len(engines))]
    proposer = text.rpartition(" > ")[0]
    own = None if lone else ratio(target, decode / DECODE[target])
    same = None if lone or target == "float" else ratio(f"{proposer} > float", decode / 21.7)
    return {
        "chain": text,
        "asked": target != "float",
        "target": target,
        "lossy": target != "float",
        "repeats": 3,
        "decode": spread(decode),
        "overall": spread(decode * 0.8),
        "ratios": {
            "float": None if text == "float" else ratio("float", decode / 12.9),
            "own_precision": own,
            "float_same_proposer": same,
        },
        "tokens_per_round": 1.0 if lone else 1.46,
        "acceptance_rate": None if lone else 0.316,
        "levels": [level(engine, accepts=accepts, shift=shift) for engine, accepts in zip(engines, accepting, strict=True)],
        "outside_share": 0.0213,
        "peak_memory_mb": 910.4,
        "agreement": {"prompts": 20, "identical": 20 if target == "float" else 16, "tokens": 0.934, "first_difference": 57.5},
    }  # fmt: skip


def load_point(text: str, number: int, speed: float) -> dict[str, Any]:
    engines = [part for part in text.split(" > ") if part in STEPS]
    lone = " > " not in text
    alone = {"chain": text, "concurrency": 1, **spread(number**0.7)}
    target = {"chain": engines[-1], "concurrency": number, **spread(speed / (DECODE["int8"] * 0.9 * number**0.7))}
    return {
        "chain": text,
        "asked": not lone,
        "target": engines[-1],
        "concurrency": number,
        "repeats": 3,
        "tokens_per_second": spread(speed),
        "ratios": {"one_at_a_time": None if number == 1 else alone, "target_alone": None if lone else target},
        "in_flight": number * 0.93,
        "first_token_ms": {"median": 61.3 * number, "p95": 83.7 * number},
        "between_tokens_ms": {"median": 24.8 + number, "p95": 31.9 + 2 * number},
        "tokens_per_round": 1.0 if lone else 1.57 - number / 50,
        "levels": [
            {
                "engine": engine, "rounds": 913 // number, "proposed": 407, "accepted": 281, "draft_length": 1.7 / number,
                "acceptance_rate": 0.69, "skipped": 24, "skipped_share": None if engine == engines[-1] else 0.413,
            }
            for engine in engines
        ],
        "outside_share": 0.0387,
    }  # fmt: skip


def realistic() -> dict[str, Any]:
    """What a whole run with a sweep and fidelity gives."""
    return {
        "format_version": 2,
        "bundle": {"name": "demo-int8", "model": "demo", "engines": {"int8": "w8a8", "int4": "w4a32", "float": "float32"}},
        "machine": {"cpu": "AMD EPYC 9V74", "cores": 2, "threads": 2, "read_gb_per_s": [41.2, 39.8]},
        "versions": {"quasar-toolchain": "0.1.0", "onnxruntime": "1.31.1", "python": "3.11.7"},
        "command": 'quasar-bench demo-int8 --prompts demo.jsonl --chains "prompt-lookup > int8; int4 > int8"',
        "settings": {
            "prompts": "demo.jsonl", "prompts_sha256": "9f2c" * 16, "rows": 20, "max_new_tokens": 128, "repeats": 3,
            "sampling": {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": None},
            "ignore_eos": True, "draft_length": None, "batch_invariant": False, "concurrency": [1, 2, 4, 8],
        },
        "interrupted": False,
        "notes": [],
        "chains": [chain_result(text, decode, shift=0.02 * index) for index, (text, decode) in enumerate(DECODE.items())],
        "load": {
            "concurrency": [1, 2, 4, 8],
            "points": [
                load_point(text, number, DECODE[text] * 0.9 * number**0.7)
                for number in (1, 2, 4, 8)
                for text in ("prompt-lookup > int8", "int4 > int8", "int8")
            ],
        },
        "sweep": {
            "axes": {"k": [1, 2, 3, 5, 8], "temperature": [0.0, 0.6, 1.0]},
            "points": [
                {
                    "chain": text, "k": k, "temperature": temperature, "decode": 38.6 * times, "ratio": times,
                    "denominator": "int8", "tokens_per_round": 1.4, "acceptance_rate": 0.3,
                }
                for start, text in ((1.1, "prompt-lookup > int8"), (0.85, "int4 > int8"), (1.0, "prompt-lookup > int4 > int8"))
                for temperature in (0.0, 0.6, 1.0)
                for k in (1, 2, 3, 5, 8)
                for times in [start + 0.12 * k - 0.013 * k * k - 0.15 * temperature]
            ],
        },
        "fidelity": {
            "reference": "float", "prompts": 20, "tokens": 2560, "confidence": 0.95,
            "engines": [
                {
                    "engine": engine, "perplexity": spread(3.412 * worse, key="value"),
                    "perplexity_ratio": spread(worse, 0.001, "value"), "mean_kl": spread(0.00312 * worse**40, 0.1, "value"),
                    "top1_agreement": spread(0.9971 / worse, 0.001, "value"), "flip_rate": spread(0.2 * worse, 0.4, "value"),
                    "first_difference": spread(57.5, 0.3, "value"),
                }
                for engine, worse in (("int8", 1.0021), ("int4", 1.0633))
            ],
        },
    }  # fmt: skip


def many_chains(count: int = 20) -> dict[str, Any]:
    """So many chains, some of them with long names."""
    results = realistic()
    texts = [
        f"prompt-lookup(k={k}) > pruned-layers:0.{k} > int4 > int8" if k % 5 == 0 else f"suffix-{k} > int8" for k in range(count)
    ]
    results["chains"] = []
    for place, text in enumerate(texts):
        chain = chain_result("prompt-lookup > int8", 55 - 2.1 * place, shift=0.008 * place)
        results["chains"].append({**chain, "chain": text, "asked": place % 4 != 3})
    loads = [point for point in results["load"]["points"] if point["chain"] == "prompt-lookup > int8"]
    results["load"]["points"] = [{**point, "chain": text} for point in loads for text in texts]
    points = [point for point in results["sweep"]["points"] if point["chain"] == "prompt-lookup > int8"]
    results["sweep"]["points"] = [{**point, "chain": text} for text in texts for point in points]
    return results


def emptied(results: Any) -> Any:
    """The same with every value unknown that is not a list or an object."""
    if isinstance(results, dict):
        return {key: emptied(value) for key, value in results.items()}
    return [emptied(value) for value in results] if isinstance(results, list) else None


def without(results: dict[str, Any], *path: Any) -> dict[str, Any]:
    """A copy with one value unknown."""
    changed = copy.deepcopy(results)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = None
    return changed
