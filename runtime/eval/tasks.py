"""Tasks of the harness, by what they are called on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from quasar.engines.errors import UsageError, first_line

PATTERN = "*?["


class Tasks(TaskManager):  # type: ignore[misc]
    """Tasks that there are.

    Args:
        include_path: a folder with tasks; None for none.
        of_harness: also those that come with the harness. Looking through them takes half a minute.
        run_unsafe_code: allow those that run code which the model has written.
    """

    def __init__(self, include_path: Path | None, of_harness: bool, run_unsafe_code: bool) -> None:
        super().__init__(include_path=None if include_path is None else str(include_path), include_defaults=of_harness)
        self._run_unsafe_code = run_unsafe_code

    def find(self, name: str) -> list[str]:
        """What a name stands for: a task, a group, tasks that a pattern fits, or a YAML file; empty where there is none."""
        if _is_file(name):
            return [str(Path(name).absolute())]
        found: list[str] = self.match_tasks([name])
        return found

    def load(self, task_list: Any) -> Any:
        """As of the harness.

        Raises:
            UsageError: a task cannot be loaded, or not be run.
        """
        try:
            loaded = super().load(task_list)
        except Exception as error:  # a task is a stranger's program, and its data come from anywhere
            shown = ", ".join(map(str, task_list))
            raise UsageError(f"--tasks {shown}: cannot be loaded: {type(error).__name__}: {first_line(error)}") from None
        for name, task in loaded["tasks"].items():
            if getattr(task, "MULTIMODAL", False):
                raise UsageError(f"--tasks {name}: it shows pictures, and bundles read text only; leave it out")
            if getattr(task, "UNSAFE_CODE", False) and not self._run_unsafe_code:
                raise UsageError(
                    f"--tasks {name}: it runs code that the model writes; add --confirm_run_unsafe_code where that can do no harm"
                )
        return loaded


def find_tasks(text: str, include_path: Path | None = None, run_unsafe_code: bool = False) -> tuple[Tasks, list[str]]:
    """Tasks, and which of them are asked for.

    Args:
        text: names with commas between them, see `Tasks.find`.
        include_path, run_unsafe_code: see `Tasks`.

    Raises:
        UsageError: there is no such task or folder.
    """
    if include_path is not None and not include_path.is_dir():
        raise UsageError(f"--include_path {include_path}: no such directory")
    names = [name for name in map(str.strip, text.split(",")) if name]
    if not names:
        raise UsageError("--tasks names no task; give names with commas between them")
    own = Tasks(include_path, False, run_unsafe_code)
    if not any(_may_name_others(name) for name in names) and all(map(own.find, names)):
        tasks = own
    else:
        tasks = Tasks(include_path, True, run_unsafe_code)
    for name in names:
        if not tasks.find(name):
            raise UsageError(f"--tasks {name}: no such task; `lm_eval ls tasks` lists them, --include_path adds your own")
    return tasks, list(dict.fromkeys(found for name in names for found in tasks.find(name)))


def _is_file(name: str) -> bool:
    """Whether a name is that of a file.

    Raises:
        UsageError: it is, and there is none.
    """
    if not name.endswith((".yaml", ".yml")):
        return False
    if not Path(name).is_file():
        raise UsageError(f"--tasks {name}: no such file")
    return True


def _may_name_others(name: str) -> bool:
    """Whether a name may stand for tasks that come with the harness, beside what is found elsewhere."""
    if _is_file(name):
        return any(line.startswith("group:") for line in Path(name).read_text(encoding="utf-8").splitlines())
    return any(character in name for character in PATTERN)
