"""Measure what a Triton server takes away from the library, what clients at once gain, and what more instances cost.

usage: triton_speed.py ENVIRONMENT BUNDLE [--prompts FILE.jsonl] [--repeat 5] [--max-tokens 128] [--memory [--share-weights]]

ENVIRONMENT is the server's, see triton_server.py. Server and library answer the same prompts in turn, so that a slow minute
of the machine hits both alike; no prompt is kept for the next. With --memory: only what one and two instances hold.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from triton_client import Answer, Client
from triton_server import TritonServer, make_environment

from quasar.runtime import Model, SamplingParams, load

LONG, SHORT = 1000, 20
"""Tokens of the prompt that is read, and of the one that comes meanwhile."""
WRITE = [sys.executable, "-c", "import sys; from quasar.runtime.serving.triton.cli import main; sys.exit(main())"]


def questions(file: Path | None, count: int) -> list[str]:
    """Prompts: the first turns of a file, or of the built-in calibration set."""
    if file is None:
        rows = (resources.files("quasar.calibration") / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        found = [m["content"] for row in rows if '"messages"' in row for m in json.loads(row)["messages"] if m["role"] == "user"]
    else:
        found = [json.loads(row)["turns"][0] for row in file.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(found))[:count]


def write_repository(bundle: Path, folder: Path, *options: str) -> None:
    subprocess.run([*WRITE, str(bundle), "--repository", str(folder), "--name", "model", *options], check=True, stdout=sys.stderr)


def of_library(model: Model, prompt: list[int], count: int) -> tuple[float, float, int]:
    """(seconds to the first token, seconds, tokens)"""
    begin = time.perf_counter()
    generation = model.stream(prompt, SamplingParams(max_new_tokens=count, ignore_eos=True))
    next(generation)
    first = time.perf_counter() - begin
    done = generation.finish()
    return first, time.perf_counter() - begin, len(done.ids)


def of_server(client: Client, prompt: list[int], count: int) -> tuple[float, float, int]:
    answer = client.ask(token_ids=prompt, max_tokens=count, ignore_eos=True, stream=True)
    return answer.stamps[0], answer.stamps[-1], len(answer.ids)


def many(server: TritonServer, prompts: list[list[int]], count: int, together: bool) -> float:
    """Seconds until every prompt has its answer, each by a client of its own."""
    clients = [Client(server.grpc, "model") for _ in prompts]
    answers: list[Answer] = []

    def ask(client: Client, prompt: list[int]) -> None:
        answers.append(client.ask(token_ids=prompt, max_tokens=count, ignore_eos=True, stream=True))

    begin = time.perf_counter()
    threads = [threading.Thread(target=ask, args=pair) for pair in zip(clients, prompts, strict=True)]
    for thread in threads:
        thread.start()
        if not together:
            thread.join()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    assert len(answers) == len(prompts)
    for client in clients:
        client.close()
    return seconds


def speed(environment: Path, bundle: Path, work: Path, args: argparse.Namespace) -> None:
    write_repository(bundle, work / "one", "--no-prefix-caching")
    with (
        TritonServer(environment, work / "one", ["model"], work / "log") as server,
        load(bundle, prefix_caching=False) as model,
    ):
        server.wait_ready("model")
        prompts = [model.tokenize([{"role": "user", "content": text}]) for text in questions(args.prompts, 8)]
        with Client(server.grpc, "model") as client:
            ratios, firsts, own_speed, served_speed = [], [], [], []
            for number in range(args.repeat + 1):
                own = [of_library(model, prompt, args.max_tokens) for prompt in prompts]
                served = [of_server(client, prompt, args.max_tokens) for prompt in prompts]
                if number == 0:  # draft lengths settle
                    continue
                rates = [sum(n for _, _, n in rows) / sum(s for _, s, _ in rows) for rows in (own, served)]
                own_speed.append(rates[0])
                served_speed.append(rates[1])
                ratios.append(rates[1] / rates[0])
                firsts += [1e3 * (mine[0] - theirs[0]) for mine, theirs in zip(served, own, strict=True)]
        print(f"library, tokens/s: {statistics.median(own_speed):.0f} ({min(own_speed):.0f} to {max(own_speed):.0f})")
        print(f"gRPC streaming, one client, tokens/s: {statistics.median(served_speed):.0f}")
        print(f"gRPC / library: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"time to first token, gRPC - library, ms: median {statistics.median(firsts):.2f}, worst {max(firsts):.2f}")
        pairs = []
        for number in range(args.repeat + 1):
            # now the one first, now the other
            seconds = {way: many(server, prompts, args.max_tokens, way) for way in (bool(number % 2), not number % 2)}
            pairs.append((seconds[False], seconds[True]))
        gains = [one / together for one, together in pairs[1:]]
        one, together = (statistics.median(pair[way] for pair in pairs[1:]) for way in (0, 1))
        spread = f"median of the ratios {statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
        print(f"8 clients one after another: {one:.3f} s, at once: {together:.3f} s, {spread}")
        beside(server, model.vocab_size, args.repeat)


def beside(server: TritonServer, vocab_size: int, repeat: int) -> None:
    """Print the time to the first token of a short prompt, alone and while a long one is read."""
    random = np.random.default_rng(0)
    alone, meanwhile, reading = [], [], []
    with Client(server.grpc, "model") as short, Client(server.grpc, "model") as long:
        for _ in range(repeat):
            prompts = [random.integers(0, vocab_size, count).tolist() for count in (SHORT, SHORT, LONG)]
            alone.append(of_server(short, prompts[0], 1)[0])
            thread = threading.Thread(target=lambda tokens=prompts[2]: reading.append(of_server(long, tokens, 1)[0]))
            thread.start()
            time.sleep(statistics.median(alone))  # it is being read by now
            meanwhile.append(of_server(short, prompts[1], 1)[0])
            thread.join()
    own, late, whole = (1e3 * statistics.median(seconds) for seconds in (alone, meanwhile, reading))
    print(f"time to first token of {SHORT} tokens, ms: alone {own:.1f}, while {LONG} are read {late:.1f} (all of it {whole:.1f})")


def held(pid: int) -> tuple[float, float]:
    """MB of a process: (its share of what is mapped, of that what it shares with none)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rows = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    return rows["Pss"] / 1e3, (rows["Private_Clean"] + rows["Private_Dirty"]) / 1e3


def stubs(server: int) -> list[int]:
    """Processes of the Python backend."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            name = (folder / "cmdline").read_bytes().split(b"\0")[0]
        except OSError:
            continue
        if parent == server and name.endswith(b"triton_python_backend_stub"):
            found.append(int(folder.name))
    return sorted(found)


def memory(environment: Path, bundle: Path, work: Path, options: Sequence[str]) -> None:
    totals = []
    for count in (1, 2):
        folder = work / f"memory-{count}"
        write_repository(bundle, folder, "--instances", str(count), *options)
        with TritonServer(environment, folder, ["model"], work / "log") as server:
            server.wait_ready("model", seconds=600)
            figures = [held(pid) for pid in stubs(server.pid)]
            totals.append(sum(pss for pss, _ in figures))
            each = ", ".join(f"{pss:.0f} MB ({private:.0f} of its own)" for pss, private in figures)
            print(f"{count} instance(s): {totals[-1]:.0f} MB: {each}", flush=True)
    print(f"second instance / first: {(totals[1] - totals[0]) / totals[0]:.2f}")


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("environment", type=Path)
    p.add_argument("bundle", type=Path)
    p.add_argument("--prompts", type=Path)
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--max-tokens", type=int, default=128)
    p.add_argument("--memory", action="store_true")
    p.add_argument("--share-weights", action="store_true")
    args = p.parse_args()
    environment = make_environment(args.environment)
    work = Path(tempfile.mkdtemp())
    try:
        if args.memory:
            memory(environment, args.bundle, work, ["--share-weights"] if args.share_weights else [])
        else:
            speed(environment, args.bundle, work, args)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
