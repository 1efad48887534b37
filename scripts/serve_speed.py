"""The HTTP server beside the library: tokens/s of one and of eight clients, and the time to the first token.

    python scripts/serve_speed.py BUNDLE [--chain C] [--max-tokens 64] [--repeat 3]

Each has a model of its own, and they take turns. Greedy, the end token ignored, prompts read anew each time; medians of pairs,
with quartiles. DRAM bandwidth is not read: the figures are ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from operator import sub, truediv
from pathlib import Path
from typing import Any

import httpx2 as httpx

from quasar.runtime import Model, SamplingParams, load

SUBJECTS = ("apples", "rolls", "pens", "stamps", "eggs", "books", "coins", "keys")
QUESTIONS = [f"A shop has {10 + 7 * i} {name} and sells {3 + i} of them. How many are left?" for i, name in enumerate(SUBJECTS)]
PAUSE_SECONDS = 0.2
"""Before each reading: the threads of a pass look for more work for a while, and would take the cores from the other side."""


def messages(question: str) -> list[dict[str, str]]:
    """A chat."""
    return [{"role": "user", "content": question}]


class Library:
    """Answers in this process."""

    def __init__(self, bundle: Path, chain: str | None, count: int) -> None:
        self.model: Model = load(bundle, chain=chain, sequences=len(QUESTIONS), prefix_caching=False)
        self._params = SamplingParams(max_new_tokens=count, ignore_eos=True)

    def one(self, question: str) -> tuple[float, float]:
        """(seconds to the first token, seconds of all)"""
        begin, first = time.perf_counter(), 0.0
        for _ in self.model.stream(messages=messages(question), params=self._params):
            first = first or time.perf_counter() - begin
        return first, time.perf_counter() - begin

    def all(self) -> float:
        """Seconds of all questions together."""
        begin = time.perf_counter()
        self.model.generate([messages(question) for question in QUESTIONS], self._params)
        return time.perf_counter() - begin


class Server:
    """The same through HTTP, streamed."""

    def __init__(self, bundle: Path, chain: str | None, count: int) -> None:
        self._count = count
        command = [sys.executable, "-m", "quasar.runtime.serving.openai", str(bundle), "--port", "0", "--no-prefix-caching"]
        command += ["--sequences", str(len(QUESTIONS)), *(["--chain", chain] if chain else [])]
        begin = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        url = next(line.split()[0] for line in self._process.stdout if line.startswith("http"))
        self.http = httpx.Client(base_url=url, timeout=600)
        self.http.get("/health").raise_for_status()
        self.start_seconds = time.perf_counter() - begin

    def one(self, question: str) -> tuple[float, float]:
        """See `Library.one`."""
        body = {"messages": messages(question), "max_tokens": self._count, "ignore_eos": True, "stream": True}
        begin, first = time.perf_counter(), 0.0
        with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if not first and line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"]:
                    first = time.perf_counter() - begin
        return first, time.perf_counter() - begin

    def all(self) -> float:
        """See `Library.all`."""
        begin = time.perf_counter()
        with ThreadPoolExecutor(len(QUESTIONS)) as pool:
            list(pool.map(self.one, QUESTIONS))
        return time.perf_counter() - begin

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


def interleaved(repeat: int, *measured: Callable[[], Any]) -> list[list[Any]]:
    """Values of each, the order reversed from one round to the next."""
    found: list[list[Any]] = [[] for _ in measured]
    for number in range(repeat):
        for place in range(len(measured))[:: 1 if number % 2 == 0 else -1]:
            time.sleep(PAUSE_SECONDS)
            found[place].append(measured[place]())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--chain")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    if args.repeat < 2:
        parser.error("--repeat: give 2 or more; quartiles need two readings")
    library = Library(args.bundle, args.chain, args.max_tokens)
    server = Server(args.bundle, args.chain, args.max_tokens)
    try:
        for asked in (library, server):
            asked.one(QUESTIONS[0])
            asked.all()
        singles = interleaved(args.repeat * 4, lambda: library.one(QUESTIONS[1]), lambda: server.one(QUESTIONS[1]))
        loads = interleaved(args.repeat, library.all, server.all)
    finally:
        server.close()
    first, whole, served_first, served_whole = ([one[place] for one in side] for side in singles for place in range(2))
    print(f"start to /health 200: {server.start_seconds:.2f} s, imports among them")
    rate = args.max_tokens / statistics.median(whole)
    print(f"one client: library {rate:.1f} tokens/s, HTTP / library {paired(whole, served_whole, truediv)}")
    later = paired([1e3 * one for one in served_first], [1e3 * one for one in first], sub)
    print(f"first token: library {1e3 * statistics.median(first):.1f} ms, HTTP - library {later} ms")
    rate = len(QUESTIONS) * args.max_tokens / statistics.median(loads[0])
    print(f"eight clients: library {rate:.1f} tokens/s, HTTP / library {paired(*loads, truediv)}")


def paired(left: list[float], right: list[float], compare: Callable[[float, float], float]) -> str:
    """The median over readings that followed one another, and its quartiles."""
    low, middle, high = statistics.quantiles(map(compare, left, right), n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
