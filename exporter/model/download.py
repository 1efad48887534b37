"""Models of the Hugging Face hub: which files of a repository are fetched, and in which order."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from quasar.engines.errors import UsageError, first_line
from quasar.exporter.model.folder import CONFIG, NAMES, OLD_TOKENIZERS, check_names, is_read

Judge = Callable[[Path], object]
"""Called with the path of a config.json; raises UsageError where the model cannot be exported."""


def download(repo_id: str, revision: str | None, asked: str, judge: Judge) -> Path:
    """The folder of a model of the hub: its names are looked at, then its config.json is judged, then the rest is fetched.

    Without a connection, a model that is whole in the cache is taken.

    Args:
        revision: branch, tag or commit; None for the newest.
        asked: how the model was asked for, for errors.

    Raises:
        UsageError: it holds no checkpoint, cannot be exported, or cannot be downloaded.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return _fetch(repo_id, revision, asked, judge)
    except UsageError:
        raise
    except RevisionNotFoundError:
        raise UsageError(f"--revision {revision or 'main'}: {repo_id} has no such branch, tag or commit; see its page") from None
    except GatedRepoError:
        raise UsageError(
            f"{asked}: {repo_id} is gated; accept its terms on its page, log in with `hf auth login`, or give a local folder"
        ) from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"{asked}: the hub has no {repo_id}, or it is private; check the name, or log in with `hf auth login`"
        ) from None
    except Exception as error:  # every kind of network, permission and cache failure
        raise UsageError(
            f"{asked}: {repo_id} cannot be downloaded ({first_line(error)}) and is not whole in the cache; "
            "check the connection, or give a local folder"
        ) from None


def _fetch(repo_id: str, revision: str | None, asked: str, judge: Judge) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        names = [file.rfilename for file in HfApi().model_info(repo_id, revision=revision).siblings or ()]
    except RevisionNotFoundError:
        raise
    except Exception as error:
        return _cached(repo_id, revision, error)
    check_names(names, f"{asked}: {repo_id}", lambda part: _take(repo_id, revision, part))
    config = Path(hf_hub_download(repo_id, CONFIG, revision=revision))
    judge(config)
    wanted = [name for name in names if is_read(name)]
    # the folder that config.json lies in is named by the commit: everything else comes from the same one
    folder = Path(snapshot_download(repo_id, revision=config.parent.name, allow_patterns=wanted))
    for name in wanted:
        if not (folder / name).is_file():
            raise UsageError(f"{asked}: {name} of {repo_id} did not arrive; run the command again")
    return folder


def _cached(repo_id: str, revision: str | None, error: Exception) -> Path:
    """The folder of a model that an earlier download left, where it is known to be whole; else `error` is raised."""
    from huggingface_hub import snapshot_download

    # a star takes slashes too
    needed, deeper = [*NAMES, *OLD_TOKENIZERS, "model*.safetensors", "additional_chat_templates/*.jinja"], ["model*/*", "*/*/*"]
    try:
        folder = snapshot_download(
            repo_id, revision=revision, local_files_only=True, allow_patterns=needed, ignore_patterns=deeper
        )
    except Exception:  # no cache, not this model, or only some of its files
        raise error from None
    return Path(folder)


def _take(repo_id: str, revision: str | None, part: str) -> str:
    """Advice to give a file, or a folder (ends in a slash), of a repository in its place."""
    version = [] if revision is None else ["--revision", revision]
    if part.endswith("/"):
        command = shlex.join(["hf", "download", repo_id, *version, "--include", f"{part}*"])
        return f"run `{command}` and give {part.rstrip('/')} in the folder that it prints"
    return f"run `{shlex.join(['hf', 'download', repo_id, part, *version])}` and give the path that it prints"
