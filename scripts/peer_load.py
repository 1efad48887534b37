"""Tokens a second of several clients together: chains of a bundle beside OpenVINO GenAI's continuous batching, in one run.

usage: peer_load.py BUNDLE OPENVINO PROMPTS.jsonl --python OV/bin/python [--chains "int8; prompt-lookup > int8"] [--lookup]
                    [--clients 1,8] [--contexts 0,1000] [--max-new-tokens 64] [--repeat 5] [--threads 0] [--batched-tokens 2048]

OPENVINO is a folder of the same model as OpenVINO GenAI reads it, e.g. quantized to W8A8 by NNCF; OV is a virtual
environment with openvino-genai: `python -m venv OV && OV/bin/pip install openvino-genai`. BUNDLE makes the token ids, so that
all read the same.

Each system is a process of its own that sleeps while another one works. A wave is as many clients as asked for, which all ask
at once: questions of PROMPTS through the chat template (context 0), or cut from all of them to a number of tokens. Waves of
all systems take turns, with other questions in each repeat. No prefix is cached, greedy, end tokens are ignored.

* decode: tokens/s from when every client has its first token to when the first one is done
* all: new tokens over the time of the wave, prefill included
* first and between: milliseconds to the first token, and between rounds that gave tokens; median
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

REST = 1.0
"""Seconds between waves, in which the threads of the last one stop spinning."""


class System(Protocol):
    """Something that answers several prompts at once, step by step."""

    def ask(self, ids: list[int], count: int) -> Any: ...

    def step(self) -> None: ...

    def read(self, asked: Any) -> tuple[int, bool]:
        """(new tokens since the last time, whether that was all)"""
        ...


class Quasar:
    """A chain of a bundle."""

    def __init__(self, options: dict[str, Any]) -> None:
        from quasar.runtime import load

        threads, slots = options["threads"], options["clients"]
        self._model = load(options["path"], options["chain"], sequences=slots, threads=threads, prefix_caching=False)

    def ask(self, ids: list[int], count: int) -> Any:
        from quasar.runtime import SamplingParams

        return self._model.stream(ids, SamplingParams(max_new_tokens=count, ignore_eos=True))

    def step(self) -> None:
        self._model.step()

    def read(self, asked: Any) -> tuple[int, bool]:
        new = 0
        while (piece := asked.poll()) is not None:
            new += len(piece.ids)
        if asked.error is not None:
            raise asked.error
        return new, asked.done


class OpenVino:
    """OpenVINO GenAI with paged attention; its own prompt lookup, 5 tokens of at most 3-grams, where asked for."""

    def __init__(self, options: dict[str, Any]) -> None:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = options["batched_tokens"]
        scheduler.max_num_seqs = options["clients"]
        scheduler.cache_size = 2
        properties = {"INFERENCE_NUM_THREADS": options["threads"] or os.cpu_count()}
        self._lookup = options["lookup"]
        if self._lookup:
            properties["prompt_lookup"] = True
        self._genai = genai
        self._pipeline = genai.ContinuousBatchingPipeline(options["path"], scheduler, "CPU", properties)
        self._number = 0

    def ask(self, ids: list[int], count: int) -> Any:
        import numpy as np
        import openvino

        config = self._genai.GenerationConfig()
        config.max_new_tokens = count
        config.ignore_eos = True
        config.set_eos_token_id(0)  # ignored, but none is refused
        config.do_sample = False
        config.apply_chat_template = False
        if self._lookup:
            config.num_assistant_tokens, config.max_ngram_size = 5, 3
        self._number += 1
        return self._pipeline.add_request(self._number, openvino.Tensor(np.array([ids], np.int64)), config)

    def step(self) -> None:
        self._pipeline.step()

    def read(self, asked: Any) -> tuple[int, bool]:
        new = 0
        while asked.can_read():
            new += sum(len(output.generated_ids) for output in asked.read().values())
        return new, asked.get_status() == self._genai.GenerationStatus.FINISHED


SYSTEMS: dict[str, Callable[[dict[str, Any]], System]] = {"quasar": Quasar, "openvino": OpenVino}


def wave(system: System, prompts: Sequence[list[int]], count: int) -> dict[str, Any]:
    """All prompts at once: of each client, the times at which tokens came, and how many."""
    begin = time.perf_counter()
    asked = {number: system.ask(ids, count) for number, ids in enumerate(prompts)}
    stamps: list[list[tuple[float, int]]] = [[] for _ in prompts]
    while asked:
        system.step()
        now = time.perf_counter() - begin
        for number, one in list(asked.items()):
            new, done = system.read(one)
            if new:
                stamps[number].append((now, new))
            if done:
                del asked[number]
    return figures(stamps)


def figures(stamps: Sequence[Sequence[tuple[float, int]]]) -> dict[str, Any]:
    """What the columns of the table are made of; `decode` is None where one client was done before another had begun."""
    tokens = sum(new for client in stamps for _, new in client)
    all_begun, one_done = max(client[0][0] for client in stamps), min(client[-1][0] for client in stamps)
    meanwhile = sum(new for client in stamps for at, new in client if all_begun < at <= one_done)
    gaps = [later - earlier for client in stamps for (earlier, _), (later, _) in pairwise(client)]
    return {
        "tokens": tokens,
        "decode": meanwhile / (one_done - all_begun) if one_done > all_begun else None,
        "all": tokens / max(client[-1][0] for client in stamps),
        "first": statistics.median(client[0][0] for client in stamps),
        "between": statistics.median(gaps) if gaps else None,
    }


def work(name: str, options: dict[str, Any]) -> None:
    """A system's process: a line in asks for a wave, a line out tells how it went."""
    system = SYSTEMS[name](options)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(wave(system, asked["prompts"], asked["count"])), file=answers, flush=True)


class Worker:
    """The process of a system, seen from outside."""

    def __init__(self, python: str, name: str, options: dict[str, Any]) -> None:
        command = [python, __file__, "--work", name, json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def wave(self, prompts: Sequence[list[int]], count: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "count": count}) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._line())
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a system's process has ended; what it said is above")
        return line


def questions(bundle: Path, prompts: Path) -> list[list[int]]:
    """Token ids of the first turn of each row, through the chat template where there is one."""
    from quasar.engines.bundle.bundle import open_bundle
    from quasar.runtime.chat import Chat
    from quasar.runtime.tokenizer import Tokenizer

    opened = open_bundle(bundle)
    tokenizer = Tokenizer(opened.tokenizer_folder(), next(iter(opened.manifest.engines.values())).vocab_size)
    texts = [json.loads(line)["turns"][0] for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not tokenizer.has_chat_template:
        return [tokenizer.encode(text) for text in texts]
    return [tokenizer.encode_chat(Chat([{"role": "user", "content": text}])) for text in texts]


def cut(prompts: Sequence[list[int]], first: int, clients: int, context: int) -> list[list[int]]:
    """A wave's prompts from number `first` on: as they are, or with the following ones behind them up to `context` tokens."""

    def one(number: int) -> list[int]:
        ids = list(prompts[number % len(prompts)])
        while len(ids) < context:
            number += 1
            ids += prompts[number % len(prompts)]
        return ids[:context] if context else ids

    return [one(first + client) for client in range(clients)]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundle", type=Path)
    p.add_argument("openvino", type=Path)
    p.add_argument("prompts", type=Path)
    p.add_argument("--python", required=True, metavar="FILE", help="of an environment with openvino-genai")
    p.add_argument("--chains", default="int8; prompt-lookup > int8")
    p.add_argument("--lookup", action="store_true", help="OpenVINO with its prompt lookup, too")
    p.add_argument("--clients", default="1,8")
    p.add_argument("--contexts", default="0,1000", help="tokens of a prompt; 0 for the questions as they are")
    p.add_argument("--max-new-tokens", type=int, default=64)
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--batched-tokens", type=int, default=2048, help="OpenVINO's max_num_batched_tokens (its default is 256)")
    p.add_argument("--json", type=Path, help="write every wave there")
    args = p.parse_args()
    clients, contexts = ([int(part) for part in text.split(",")] for text in (args.clients, args.contexts))
    prompts = questions(args.bundle, args.prompts)
    common = {"clients": max(clients), "threads": args.threads}
    theirs = {**common, "path": str(args.openvino), "batched_tokens": args.batched_tokens}
    workers = {}
    for chain in (text.strip() for text in args.chains.split(";")):
        workers[chain] = Worker(sys.executable, "quasar", {**common, "path": str(args.bundle), "chain": chain})
    for lookup in (False, True)[: 1 + args.lookup]:
        name = "OpenVINO GenAI" + (", prompt lookup" if lookup else "")
        workers[name] = Worker(args.python, "openvino", {**theirs, "lookup": lookup})
    waves: list[dict[str, Any]] = []
    for repeat in range(-1, args.repeat):  # the first warms up
        for context in contexts:
            for number in clients:
                order = list(workers)[repeat % len(workers) :] + list(workers)[: repeat % len(workers)]
                for name in order:
                    time.sleep(REST)
                    found = workers[name].wave(cut(prompts, repeat * number, number, context), args.max_new_tokens)
                    if found["tokens"] != number * args.max_new_tokens:
                        print(f"{name}: {found['tokens']} tokens, not {number} x {args.max_new_tokens}", file=sys.stderr)
                    if repeat >= 0:
                        waves.append({"system": name, "clients": number, "context": context, "repeat": repeat, **found})
    for worker in workers.values():
        worker.close()
    print("| context | clients | system | decode, tokens/s | all, tokens/s | first, ms | between, ms |")
    print("|---|---|---|---|---|---|---|")
    for context in contexts:
        for number in clients:
            for name in workers:
                own = [one for one in waves if (one["system"], one["clients"], one["context"]) == (name, number, context)]
                speeds = [spread([one[key] for one in own if one[key] is not None]) for key in ("decode", "all")]
                times = [1e3 * statistics.median(one[key] or 0.0 for one in own) for key in ("first", "between")]
                cells = [str(context or "short"), str(number), name, *speeds, *(f"{value:.0f}" for value in times)]
                print("| " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(json.dumps({"arguments": sys.argv[1:], "waves": waves}, indent=1))


def spread(values: Sequence[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else "-"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
