"""Many clients at once ask `quasar-serve` all kinds of things: nothing is mixed up, nothing fails, memory stays.

    python scripts/serve_soak.py BUNDLE [--requests 2000] [--clients 16]

Of ten requests six ask for an answer, each with another speculation, which must be the library's; two go away in the middle
of a stream; one has a prompt that nearly fills the context; one is wrong (broken JSON, bad fields, a prompt too long) and must
get 4xx. It prints what was counted, and ends with 1 if an answer differs, a status is 5xx (503 of a full queue aside), or the
server's memory after the last fifth is more than a tenth above what it was after the first.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx

from quasar.runtime import SamplingParams, load

COUNT = 24
WAYS: list[Any] = [None, "off", 3, "prompt-lookup > {}", "suffix > {}", {"chain": "prompt-lookup,suffix > {}", "draft_length": 5}]
WRONG: list[bytes] = [
    b"{",
    b"[]",
    b'{"messages": []}',
    b'{"messages": [{"role": "user", "content": "a"}], "temperature": -1}',
    b'{"messages": [{"role": "user", "content": "a"}], "speculation": "nothing > at all"}',
    json.dumps({"messages": [{"role": "user", "content": "word " * 50000}]}).encode(),
]


class Soak:
    """What is asked, and what came of it."""

    def __init__(self, bundle: Path, url: str, pid: int) -> None:
        self.counts: Counter[str] = Counter()
        self.memory: list[float] = []
        self._http = httpx.Client(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))
        self._pid = pid
        self._lock = threading.Lock()
        questions = [f"A shop has {n} apples and sells {n // 3} of them. How many are left?" for n in range(20, 60)]
        params = SamplingParams(max_new_tokens=COUNT)
        with load(bundle, sequences=1) as model:
            self._target = model.chain.target
            self._long = "one two three " * ((model.max_length - 40) // 5)
            self._answers = {one: model.generate(messages=_messages(one), params=params).text for one in questions}
            self._answers[self._long] = model.generate(messages=_messages(self._long), params=params).text

    def ask(self, number: int) -> None:
        """One request."""
        dice = random.Random(number)
        kind = number % 10
        if kind < 6:
            self._check(dice.choice(list(self._answers)[:-1]), dice, stream=kind % 2 == 0)
        elif kind < 8:
            self._drop(dice.choice(list(self._answers)), dice)
        elif kind == 8:
            self._check(self._long, dice, stream=False)
        else:
            said = self._http.post("/v1/chat/completions", content=dice.choice(WRONG))
            self._count("wrong, refused" if 400 <= said.status_code < 500 else f"wrong, {said.status_code}")

    def read_memory(self) -> None:
        """Note the server's resident memory."""
        pages = Path(f"/proc/{self._pid}/statm").read_text().split()[1]
        self.memory.append(int(pages) * 4096 / 1e6)

    def _body(self, question: str, dice: random.Random, stream: bool) -> dict[str, Any]:
        way = json.loads(json.dumps(dice.choice(WAYS)).replace("{}", self._target))
        return {"messages": _messages(question), "max_tokens": COUNT, "stream": stream, "speculation": way}

    def _check(self, question: str, dice: random.Random, stream: bool) -> None:
        body = self._body(question, dice, stream)
        if stream:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                status, text = response.status_code, ""
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        else:
            said = self._http.post("/v1/chat/completions", json=body)
            status, text = said.status_code, ""
            if status == 200:
                text = said.json()["choices"][0]["message"]["content"]
        if status == 200:
            self._count("answered" if text == self._answers[question] else "ANOTHER ANSWER")
        else:
            self._count(f"status {status}")

    def _drop(self, question: str, dice: random.Random) -> None:
        with self._http.stream("POST", "/v1/chat/completions", json=self._body(question, dice, True)) as response:
            for _ in zip(range(dice.randrange(6)), response.iter_lines(), strict=False):
                pass
        self._count("dropped")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def _messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    args = parser.parse_args()
    command = [sys.executable, "-m", "quasar.runtime.serving.openai", str(args.bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = next(line.split()[0] for line in server.stdout if line.startswith("http"))
        soak = Soak(args.bundle, url, server.pid)
        fifth = args.requests // 5
        with ThreadPoolExecutor(args.clients) as pool:
            for begin in range(0, args.requests, fifth):
                list(pool.map(soak.ask, range(begin, begin + fifth)))
                soak.read_memory()
        healthy = httpx.get(f"{url}/health").status_code == 200
        server.terminate()
    growth = soak.memory[-1] / soak.memory[0] - 1
    print(", ".join(f"{what}: {count}" for what, count in sorted(soak.counts.items())))
    print("resident memory after each fifth, MB: " + ", ".join(f"{one:.0f}" for one in soak.memory) + f" ({growth:+.1%})")
    print(f"healthy at the end: {healthy}, exit code {server.returncode}")
    failures = ("ANOTHER ANSWER", "status 5", "wrong, 5")
    bad = [what for what in soak.counts if what.startswith(failures) and what != "status 503"]
    return 1 if bad or growth > 0.1 or not healthy or server.returncode else 0


if __name__ == "__main__":
    raise SystemExit(main())
