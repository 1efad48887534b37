"""Where a model is and what it is called: a folder, a GGUF file, the demo model, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from quasar.engines.errors import UsageError
from quasar.exporter.model.download import Judge, download

ALIASES = {
    "qwen3": "Qwen/Qwen3-0.6B",
    "qwen3:0.6b": "Qwen/Qwen3-0.6B",
    "qwen3:1.7b": "Qwen/Qwen3-1.7B",
    "qwen3:4b": "Qwen/Qwen3-4B",
    "qwen3:8b": "Qwen/Qwen3-8B",
    "qwen3:14b": "Qwen/Qwen3-14B",
    "qwen2.5": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5:0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5:1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5:7b": "Qwen/Qwen2.5-7B-Instruct",
    "llama3.2": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2:1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2:3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama3.1:8b": "meta-llama/Llama-3.1-8B-Instruct",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.3",
    "openpangu": "FreedomIntelligence/openPangu-Embedded-7B-V1.1",
}
DEMO = "demo"
GGUF = ".gguf"
REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
URL = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)")
CACHED = "models--"
"""How the hub's cache begins the folder of a model: models--OWNER--NAME/snapshots/COMMIT."""


def locate(model: str, revision: str | None, asked: str, judge: Judge) -> Path:
    """The folder of a checkpoint, or a GGUF file; a model of the hub is downloaded.

    Args:
        model: a folder, a GGUF file, an alias, a Hugging Face id, or `demo`.
        revision: branch, tag or commit of a model of the hub.
        asked: how the model was asked for, for errors.
        judge: called with config.json of a model of the hub before its weights are fetched.

    Raises:
        UsageError: there is no such model, it holds no checkpoint, or it cannot be downloaded.
    """
    path = _find(model, asked)
    if path is None:
        return download(_repo_id(model, asked), revision, asked, judge)
    if not path.is_dir() and path.suffix.lower() != GGUF:
        raise UsageError(f"{asked}: a file, and no {GGUF}; give the folder of its checkpoint, which is {path.absolute().parent}")
    if revision is not None:
        raise UsageError(f"--revision {revision}: it is for models of the hub, and {model} is on this machine; leave it out")
    return path


def identify(path: Path) -> tuple[str, str | None]:
    """(id, commit) of what `locate` found: of a repository where it lies in the hub's cache, else the name and None."""
    # files of the cache are links to places that are named by hashes
    path = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    for folder in (path, *path.parents):
        repository = folder.parent.parent.name
        if folder.parent.name == "snapshots" and repository.startswith(CACHED):
            inside = path.relative_to(folder).parts
            return "/".join((*repository.removeprefix(CACHED).split("--"), *inside)), folder.name
    return path.name, None


def name_bundle(model: str) -> str:
    """The model's part of the default name of a bundle."""
    path = _find(model, f"--model {model}")
    if path is None:
        return model.rpartition("/")[2].lower().replace(":", "-")
    name = identify(path)[0].rpartition("/")[2]
    return name[: -len(GGUF)] if name.lower().endswith(GGUF) and not path.is_dir() else name


def _find(model: str, asked: str) -> Path | None:
    """What is there on this machine under that name."""
    if model == DEMO:
        return Path(str(resources.files("quasar.exporter") / "demo"))
    if not model:
        raise UsageError(f"{asked}: the name is empty; give a checkpoint folder, a Hugging Face id or an alias")
    try:
        path = Path(model).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, RuntimeError, ValueError) as error:  # too long, not allowed, no such user, a null byte
        raise UsageError(
            f"{asked}: cannot be looked up ({getattr(error, 'strerror', None) or error}); give another path"
        ) from None
    return path


def _repo_id(model: str, asked: str) -> str:
    """The repository of an alias or id that is nothing on this machine."""
    if model.lower() in ALIASES:
        return ALIASES[model.lower()]
    if url := URL.match(model):
        raise UsageError(f"{asked}: an address; give the Hugging Face id alone, which is {url[1]}")
    if model.lower().endswith(GGUF):
        raise UsageError(f"{asked}: no such file; give the path of a GGUF file that is there{_fetching(model)}")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(f"{asked}: no such folder; give a checkpoint folder, a Hugging Face id (owner/name) or an alias")
    if "/" not in model:
        raise UsageError(
            f"{asked}: neither a folder nor a known alias ({', '.join([DEMO, *ALIASES])}); "
            "a Hugging Face id has the form owner/name"
        )
    if REPO_ID.fullmatch(model) is None:
        raise UsageError(f"{asked}: no such folder, and no Hugging Face id, which is owner/name of letters, digits, -, _ and .")
    return model


def _fetching(model: str) -> str:
    """More advice, where the missing file may be meant as one of a repository."""
    owner, _, rest = model.partition("/")
    name, _, file = rest.partition("/")
    if not file or REPO_ID.fullmatch(f"{owner}/{name}") is None:
        return ""
    return f"; one of the hub is fetched by `hf download {owner}/{name} {file}`"
