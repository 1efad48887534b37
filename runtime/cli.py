"""quasar-generate"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.command import EXIT_CODES, run_command
from quasar.engines.errors import UsageError
from quasar.engines.jsonl import json_rows, read_text
from quasar.runtime.answer import Result
from quasar.runtime.chain.choice import choose_chain
from quasar.runtime.corpus import fill_pool
from quasar.runtime.generation import Generation
from quasar.runtime.loading import load_model
from quasar.runtime.model import Model
from quasar.runtime.model_options import ModelOptions
from quasar.runtime.options import (
    add_guide_options,
    add_model_options,
    add_sampling_options,
    add_template_options,
    guide_option,
    model_options,
    sampling_options,
    template_options,
)
from quasar.runtime.sampling import SamplingParams


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="quasar-generate",
        description="Generate text from a bundle. Without PROMPT it chats.",
        epilog=EXIT_CODES,
    )
    p.add_argument("bundle", metavar="BUNDLE", help="directory that quasar-export wrote")
    p.add_argument("prompt", metavar="PROMPT", nargs="?", help="what to answer; it goes through the chat template")
    p.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: 256")
    add_sampling_options(p, of_bundle=True)
    add_guide_options(p)
    p.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    p.add_argument("--logprobs", type=int, metavar="N", help="with --json: log-probabilities of the new tokens and N others")
    p.add_argument("--raw", action="store_true", help="continue PROMPT as it is, without the chat template")
    add_template_options(p)
    p.add_argument("--token-ids", type=Path, metavar="FILE", help='answer each row {"ids": [...]} of a .jsonl file')
    p.add_argument("--json", action="store_true", help="print one JSON object per answer, with statistics")
    p.add_argument("--stats", action="store_true", help="print statistics after each answer")
    add_model_options(p)
    p.add_argument(
        *("--pool-from",), type=Path, action="append", default=[], metavar="TEXTFILE",
        help="add the texts of a .txt or .jsonl file to --pool first; may be repeated; without PROMPT, do only that",
    )  # fmt: skip
    return p


def _read_rows(file: Path) -> list[list[int]]:
    """Rows of token ids; a broken one is named by its line."""
    rows = []
    for here, row in json_rows(read_text(file, "--token-ids", 'give rows {"ids": [1, 2, 3]}'), f"--token-ids {file}"):
        ids = row.get("ids") if isinstance(row, dict) else None
        if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
            raise UsageError(f'{here}: not a row {{"ids": [1, 2, 3]}}')
        rows.append(ids)
    return rows


def _to_json(result: Result) -> str:
    return json.dumps(
        {
            "ids": result.ids,
            "text": result.text,
            "finish_reason": result.finish_reason,
            "statistics": result.statistics.to_dict(),
            **({} if result.logprobs is None else {"logprobs": [asdict(one) for one in result.logprobs]}),
        },
        ensure_ascii=False,
    )


def _answer(generation: Generation, args: argparse.Namespace) -> Result:
    """Run a generation and print it: piece by piece, or as one JSON object. Ctrl-C ends it early."""
    interrupted = False
    try:
        for piece in generation:
            if not args.json:
                print(piece.text, end="", flush=True)
    except KeyboardInterrupt:
        generation.cancel()
        interrupted = True
    result = generation.result
    print(_to_json(result) if args.json else "", flush=True)
    if args.stats:
        print(result.statistics, file=sys.stderr)
    if interrupted and not _is_chat(args):
        raise KeyboardInterrupt
    return result


def _begin_row(model: Model, ids: list[int], params: SamplingParams, args: argparse.Namespace, number: int) -> Generation:
    """The answer to a row; rows share passes as far as there are slots."""
    try:
        return model.stream(ids, params)
    except UsageError as error:
        raise UsageError(f"--token-ids {args.token_ids}, row {number}: {error}") from None


def _is_chat(args: argparse.Namespace) -> bool:
    return args.prompt is None and args.token_ids is None


def _fill_pool(args: argparse.Namespace, options: ModelOptions) -> bool:
    """Add texts to the pool; whether that was all."""
    if args.pool is None:
        raise UsageError("--pool-from adds texts to a pool; say with --pool FILE where that is")
    bundle = open_bundle(args.bundle, args.verify)
    chain, alone = choose_chain(bundle, args.chain), _is_chat(args)
    if not alone:
        options.pool_path(chain)  # before anything is written
    held = fill_pool(bundle, args.pool, args.pool_from, bundle.engine(chain.target).vocab_size)
    if alone:
        print(f"{args.pool}: {held} tokens")
    return alone


def _user_turns() -> Iterator[str]:
    """Lines of the user, until the end of the input."""
    if sys.stdin.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history)
        print("Ctrl-D ends the chat, Ctrl-C an answer.", file=sys.stderr)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


def _chat(model: Model, params: SamplingParams, options: dict[str, Any] | None, args: argparse.Namespace) -> None:
    model.tokenizer.templates.choose()  # without one there is no chat, which is said before the first question
    messages: list[dict[str, str]] = []
    for line in _user_turns():
        messages.append({"role": "user", "content": line})
        try:
            result = _answer(model.stream(None, params, messages=messages, chat_template_kwargs=options), args)
        except UsageError as error:  # this turn cannot be answered; the conversation goes on without it
            print(f"quasar-generate: {error}", file=sys.stderr)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": result.text})


def _run(argv: Sequence[str] | None) -> int:
    args = parser().parse_intermixed_args(argv)  # options may stand before PROMPT
    if args.prompt is not None and args.token_ids is not None:
        raise UsageError("give either PROMPT or --token-ids")
    if args.raw and args.prompt is None:
        raise UsageError("--raw goes with a PROMPT: token ids have no template, and a chat needs one")
    options = template_options(args) or None
    if options and (args.raw or args.token_ids is not None):
        raise UsageError("--template-option goes with the chat template, which --raw and --token-ids leave out")
    own = {"max_new_tokens": args.max_new_tokens, "stop": tuple(args.stop), "logprobs": args.logprobs}
    sampling = sampling_options(args, **own, guide=guide_option(args))
    if args.logprobs is not None and not args.json:
        raise UsageError("--logprobs goes with --json")
    rows = _read_rows(args.token_ids) if args.token_ids else None
    how = model_options(args)
    if args.pool_from and _fill_pool(args, how):
        return 0
    with load_model(args.bundle, how) as model:
        params = model.sampling_params(**sampling)
        model.prepare_guide(params.guide)
        if args.stats and model.kernels:
            print("kernels: " + ", ".join(f"{name} {what}" for name, what in model.kernels.items()), file=sys.stderr)
        if rows is not None:
            for generation in [_begin_row(model, ids, params, args, number) for number, ids in enumerate(rows, start=1)]:
                _answer(generation, args)
        elif args.prompt is None:
            _chat(model, params, options, args)
        else:
            prompt: Any = args.prompt if args.raw else [{"role": "user", "content": args.prompt}]
            _answer(model.stream(prompt, params, chat_template_kwargs=options), args)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command("quasar-generate", lambda: _run(argv))
