"""Where a model is: a folder, the demo model in the package, or a repository of the Hugging Face hub."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from quasar.engines.errors import UsageError, first_line

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
FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")


def locate(model: str, revision: str | None, asked: str) -> Path:
    """The folder of a checkpoint; a model of the hub is downloaded.

    Raises:
        UsageError: there is no such folder, or the model cannot be downloaded.
    """
    if model == DEMO:
        return Path(str(resources.files("quasar.exporter") / "demo"))
    folder = Path(model).expanduser()
    if folder.is_dir() or (folder.is_file() and folder.suffix == ".gguf"):
        return folder
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(f"{asked}: no such folder; give a checkpoint folder, a Hugging Face id or an alias")
    if model not in ALIASES and "/" not in model:
        raise UsageError(
            f"{asked}: neither a folder nor a known alias ({', '.join([DEMO, *ALIASES])}); "
            "a Hugging Face id has the form owner/name"
        )
    return _download(ALIASES.get(model, model), revision, asked)


def _download(repo_id: str, revision: str | None, asked: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # every kind of network, permission and cache failure
        raise UsageError(
            f"{asked}: {repo_id} cannot be downloaded ({first_line(error)}); check the name and the connection, "
            "log in with `hf auth login` if it is gated, or give a local folder"
        ) from None


def model_id(model: str, path: Path) -> str:
    """The id that a bundle records for a checkpoint at `path`."""
    if model == DEMO:
        return DEMO
    if Path(model).expanduser().exists():
        return path.resolve().name
    return ALIASES.get(model, model)
