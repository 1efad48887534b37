"""quasar-eval"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quasar.engines.bundle.bundle import Bundle, open_bundle
from quasar.engines.command import EXIT_CODES, run_command
from quasar.engines.errors import UsageError
from quasar.runtime.chain.choice import choose_chain
from quasar.runtime.execution import running_entry
from quasar.runtime.loading import load_model
from quasar.runtime.model_options import ModelOptions
from quasar.runtime.options import add_model_options, add_template_options, model_options, template_options

MOST_SEQUENCES = 8
"""Texts that share passes where no number is asked for: more of them fill a pass no better."""


def parser() -> argparse.ArgumentParser:
    """The command's options. Those of the harness have its names, with underscores or dashes."""
    p = argparse.ArgumentParser(
        prog="quasar-eval",
        description="Evaluate a bundle on tasks of the lm-evaluation-harness: the chain's last engine scores, the chain answers.",
        epilog=EXIT_CODES,
    )
    p.add_argument("bundle", metavar="BUNDLE", help="directory that quasar-export wrote")
    p.add_argument("-t", "--tasks", required=True, metavar="T[,T...]", help="names of tasks and groups, patterns, or YAML files")
    p.add_argument(*_both("include_path"), type=Path, metavar="DIR", help="a folder with further tasks")
    p.add_argument("-f", *_both("num_fewshot"), type=int, metavar="N", help="examples before each question (default: the task's)")
    p.add_argument("-L", "--limit", type=float, metavar="N", help="the first N documents of each task, or a share of them")
    p.add_argument(
        *("-b", *_both("batch_size"), "--sequences"), dest="batch_size", default="auto", metavar="N",
        help=f"texts that share passes (default: auto, as many as the bundle was exported for, at the most {MOST_SEQUENCES})",
    )  # fmt: skip
    p.add_argument(*_both("gen_kwargs"), metavar="K=V[,K=V...]", help="changes what tasks ask of answers, e.g. max_gen_toks=64")
    p.add_argument(*_both("apply_chat_template"), action="store_true", help="ask through the model's chat template")
    p.add_argument(*_both("system_instruction"), metavar="TEXT", help="a system message before each question")
    add_template_options(p)
    p.add_argument(
        *("-o", *_both("output_path"), "--output"), type=Path, metavar="PATH",
        help="write the results to this .json file, or as results.json into this directory",
    )  # fmt: skip
    p.add_argument("-s", *_both("log_samples"), action="store_true", help="write samples_TASK.jsonl beside them, too")
    p.add_argument(*_both("confirm_run_unsafe_code"), action="store_true", help="run tasks that run code of the model")
    p.add_argument("--json", action="store_true", help="print the results as one JSON object")
    add_model_options(p, "sequences")
    return p


def _both(name: str) -> tuple[str, str]:
    return f"--{name}", f"--{name.replace('_', '-')}"


def _sequences(text: str, bundle: Bundle, options: ModelOptions) -> int:
    if text == "auto":
        engines = [bundle.engine(name) for name in choose_chain(bundle, options.chain).engines]
        return min(MOST_SEQUENCES, *(running_entry(options, bundle, entry).cache.slots for entry in engines))
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"--batch_size {text}: give a number of texts, or auto")
    return int(text)


def _results_file(args: argparse.Namespace) -> Path | None:
    """Where the results are to be written."""
    path: Path | None = args.output_path
    if path is None:
        if args.log_samples:
            raise UsageError("--log_samples: say where; add --output_path DIR")
        return None
    file = path if path.suffix == ".json" else path / "results.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"--output_path {path}: a file is there; give a directory, or a name that ends with .json") from None
    return file


def _write(results: dict[str, Any], samples: dict[str, list[Any]], file: Path) -> None:
    file.write_text(_to_json(results, indent=2) + "\n", encoding="utf-8")
    for task, rows in samples.items():
        rows_file = file.with_name(f"samples_{task}.jsonl")
        rows_file.write_text("".join(f"{_to_json(row)}\n" for row in rows), encoding="utf-8")


def _to_json(value: Any, indent: int | None = None) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)


def _run(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.limit is not None and args.limit <= 0:
        raise UsageError(f"--limit is {args.limit:g}; give a number of documents, or a share of them above 0")
    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise UsageError(f"--num_fewshot is {args.num_fewshot}; give 0 or more")
    template = template_options(args)
    if template and not args.apply_chat_template:
        raise UsageError("--template-option goes with the chat template; add --apply_chat_template")
    bundle = open_bundle(args.bundle)
    options = model_options(args, sequences=_sequences(args.batch_size, bundle, model_options(args)))
    file = _results_file(args)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the harness forks
    from lm_eval import simple_evaluate
    from lm_eval.utils import make_table

    from quasar.runtime.eval.model import QuasarLM
    from quasar.runtime.eval.tasks import find_tasks

    tasks, names = find_tasks(args.tasks, args.include_path, args.confirm_run_unsafe_code)
    with load_model(args.bundle, options) as model:
        results: dict[str, Any] = simple_evaluate(
            model=QuasarLM(model, template),
            tasks=names,
            num_fewshot=args.num_fewshot,
            batch_size=options.sequences,
            limit=args.limit,
            log_samples=args.log_samples,
            system_instruction=args.system_instruction,
            apply_chat_template=args.apply_chat_template,
            fewshot_as_multiturn=args.apply_chat_template,
            gen_kwargs=args.gen_kwargs,
            task_manager=tasks,
            confirm_run_unsafe_code=args.confirm_run_unsafe_code,
        )
    samples = results.pop("samples", {})
    if file is not None:
        _write(results, samples, file)
    about = results["config"]
    if args.json:
        print(_to_json(results))
    else:
        print(f"{about['model']}, {about['chain']}, {about['precision']}")
        print(*(make_table(results, part) for part in ("results", "groups") if part in results), sep="\n")
    if cut := about["cut_texts"]:
        print(f"{cut} texts did not fit the context of {about['max_length']} and lost their beginning", file=sys.stderr)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command("quasar-eval", lambda: _run(argv))
