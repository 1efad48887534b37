"""Which files make a checkpoint; of other folders and repositories: what they hold, and what to give instead."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quasar.engines.errors import UsageError

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""One of them is in every checkpoint: all weights, or the list of the files that hold them."""

NAMES = (
    *(CONFIG, "generation_config.json", *WEIGHTS),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
)
OLD_TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt")
"""What transformers makes a tokenizer.json from."""

PARTS = re.compile(r"model[^/]*\.safetensors|additional_chat_templates/[^/]+\.jinja")

QUANTIZERS = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ", "hf_quant_config.json": "ModelOpt"}
"""Files that quantizers leave beside config.json."""

OTHER_FORMATS = (
    (r"consolidated.*\.(pth|safetensors)", "give the same model in the format of transformers"),
    (r"pytorch_model.*\.bin", "load it with transformers and write it again with save_pretrained"),
    (r"(onnx/)?[^/]*\.onnx", "give the checkpoint that it was made from"),
    (r"[^/]*\.safetensors", "give a model as save_pretrained of transformers writes it"),
)
"""Names of weights that are not read -> advice."""

POINTER = b"version https://git-lfs.github.com/spec/"
LONGEST_POINTER = 1024


def is_read(name: str) -> bool:
    """Whether a file of that name, relative to the checkpoint, is a part of it that may be read."""
    return name in NAMES or name in OLD_TOKENIZERS or PARTS.fullmatch(name) is not None


def check_folder(folder: Path) -> None:
    """Look at the names in a folder, and for git-lfs pointers in place of its files.

    Raises:
        UsageError: it holds no checkpoint, or a quantized one; the message says what it holds and what to give instead.
    """
    base = _read(folder / "adapter_config.json").get("base_model_name_or_path")
    check_names(_names(folder), str(folder), lambda part: f"give {folder / part}", base)
    for file in sorted(folder.iterdir()):
        if is_read(file.name) and _is_pointer(file):
            raise UsageError(
                f"{file}: a git-lfs pointer, not the file itself; run `git lfs pull` in the folder, or download the model "
                "again with `hf download`"
            )


def check_names(names: Sequence[str], place: str, take: Callable[[str], str], base: object = None) -> None:
    """Look at names alone, before any file is read or fetched.

    Args:
        names: of files, relative to the folder or repository; those deep in it may be left out.
        place: what errors call it.
        take: advice to give one of its files, or one of its folders (ends in a slash), in its place.
        base: of an adapter: the model that it belongs to, where that is known.

    Raises:
        UsageError: this is no checkpoint, or a quantized one.
    """
    root = {name for name in names if "/" not in name}
    for name, method in QUANTIZERS.items():
        if name in root:
            raise UsageError(_quantized(f"{place}: {name}", method))
    if root.isdisjoint(WEIGHTS):
        raise UsageError(f"{place}: {_without_weights(names, root, take, base)}")
    if CONFIG not in root:
        raise UsageError(f"{place}: no {CONFIG}; download the whole checkpoint")


def check_precision(file: Path, config: Mapping[str, Any]) -> None:
    """Look whether a configuration speaks of quantized weights.

    Args:
        file: config.json.
        config: what it holds.

    Raises:
        UsageError: it does; the message names the method.
    """
    for part in (config, config.get("text_config")):
        found = part.get("quantization_config") if isinstance(part, Mapping) else None
        if found:
            raise UsageError(_quantized(f"{file}: quantization_config", _method(found)))


def _quantized(place: str, method: str) -> str:
    return (
        f"{place}: the weights are quantized already ({method}); give the checkpoint that they were made from, "
        "in float16, bfloat16 or float32"
    )


def _method(config: Any) -> str:
    named = config.get("quant_method") if isinstance(config, Mapping) else None
    if isinstance(named, str) and named:
        return named[:40] if named not in ("gptq", "awq", "fp8") else named.upper()
    if isinstance(config, Mapping) and any(config.get(flag) for flag in ("load_in_4bit", "load_in_8bit")):
        return "bitsandbytes"
    return "of an unknown kind"


def _without_weights(names: Sequence[str], root: set[str], take: Callable[[str], str], base: object) -> str:
    """What is there where no weights are, and what to do."""
    if not names:
        return "empty; give a folder that holds a checkpoint"
    if "adapter_config.json" in root:
        model = base[:100].strip().replace("\n", " ") if isinstance(base, str) and base else "another model"
        return (
            f"an adapter for {model}, not a whole model; merge it into its base model first (peft: merge_and_unload), "
            "then give the folder of the result"
        )
    if folders := _checkpoints_below(names):
        return f"no {WEIGHTS[0]}, but a checkpoint in {_listed(folders)}; {take(f'{folders[0]}/')}"
    if files := sorted(name for name in names if name.lower().endswith(".gguf")):
        return f"no {WEIGHTS[0]}, but {_listed(files)}; {take(files[0])}"
    if shards := sorted(name for name in root if PARTS.fullmatch(name)):
        return f"{_listed(shards)}, but no {WEIGHTS[1]} that says what they hold; download the whole checkpoint"
    for pattern, advice in OTHER_FORMATS:
        if files := sorted(name for name in names if re.fullmatch(pattern, name)):
            return f"no {WEIGHTS[0]}, but {_listed(files)}, which is not read; {advice}"
    missing = WEIGHTS[0] if CONFIG in root else f"{CONFIG} and no {WEIGHTS[0]}"
    return f"no {missing}; give a Hugging Face checkpoint with its weights"


def _checkpoints_below(names: Sequence[str]) -> list[str]:
    folders = sorted({name.rpartition("/")[0] for name in names if name.endswith(f"/{CONFIG}")})
    return [folder for folder in folders if any(f"{folder}/{weights}" in names for weights in WEIGHTS)]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _names(folder: Path) -> list[str]:
    """The files of a folder, and below it those that show a checkpoint (of a hub cache too) or another format."""
    files = [path for path in folder.iterdir() if path.is_file()]
    for below in ("*", "snapshots/*"):
        files += (path for name in (CONFIG, *WEIGHTS, "*.onnx") for path in folder.glob(f"{below}/{name}"))
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _is_pointer(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size > LONGEST_POINTER:
        return False
    return file.read_bytes().startswith(POINTER)


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
