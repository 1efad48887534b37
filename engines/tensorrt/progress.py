"""TensorRT's nested build phases as one number that grows from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import Any

POLL_SECONDS = 0.1


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: float = 0.0


class BuildProgress:
    """How much of a build is done: a phase's open part counts for one step of the phase that it belongs to.

    Args:
        advance: called with the share that was done since the last call.
    """

    def __init__(self, advance: Callable[[float], object]) -> None:
        self._advance = advance
        self._phases: dict[str, _Phase] = {}
        self._shown = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, index: int) -> None:
        """Step `index` of a phase is done."""
        if name in self._phases:
            self._phases[name].done = index + 1
            self._show()

    def finish(self, name: str) -> None:
        """A phase is done; the library then completes the step of the parent."""
        phase = self._phases.pop(name, None)
        if phase is not None and phase.parent is None:
            self._report(1.0)

    def _show(self) -> None:
        for name, phase in self._phases.items():
            if phase.parent is None:
                self._report(self._share(name))

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        open_parts = max((self._share(child) for child, p in self._phases.items() if p.parent == name), default=0.0)
        return min((phase.done + open_parts) / phase.steps, 1.0)

    def _report(self, share: float) -> None:
        if share > self._shown:  # phases that come again begin at 0
            self._advance(share - self._shown)
            self._shown = share


def make_monitor(trt: Any, advance: Callable[[float], object]) -> Any:
    """An `IProgressMonitor` of that library; once its `interruption` is set, such as to Ctrl-C, the build ends."""
    progress = BuildProgress(advance)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base class is known only now
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interruption: BaseException | None = None

        def _guard(self, call: Callable[..., None], *arguments: Any) -> bool:
            try:
                call(*arguments)
            except BaseException as error:  # it must not pass through the library's own frames
                self.interruption = self.interruption or error
            return self.interruption is None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._guard(progress.start, phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self._guard(progress.finish, phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._guard(progress.step, phase_name, step)

    return Monitor()


def run_interruptibly(work: Callable[[], Any], monitor: Any) -> Any:
    """What `work` gives, run in a thread of its own.

    Signals reach only the main thread. In the library's own frames, Ctrl-C would come up within a callback, where it is
    swallowed; here it asks the build to end by its monitor, and is raised when it has.
    """
    outcome: list[Any] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=run, name="build")
    thread.start()
    while thread.is_alive():
        try:
            thread.join(POLL_SECONDS)
        except BaseException as error:  # Ctrl-C again only asks again
            monitor.interruption = error
    if monitor.interruption is not None:
        raise monitor.interruption
    if failures:
        raise failures[0]
    return outcome[0]
