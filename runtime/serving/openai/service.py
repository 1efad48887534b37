"""What requests are answered with, and whether it takes any: a model that may still load, or drain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from quasar.runtime.model import Model
from quasar.runtime.serving.openai.errors import RequestError
from quasar.runtime.serving.openai.prometheus import Metrics
from quasar.runtime.serving.openai.words import Words
from quasar.runtime.serving.worker import Worker

State = Literal["loading", "ready", "draining"]
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ServiceOptions:
    """Who may ask what.

    Attributes:
        name: that the model is served under.
        keys: of which a client must have one; none for everybody.
        strict_model: refuse other names of models.
        queue_limit: requests that may wait; those beyond are refused. None for any number.
        most_tokens: of an answer; None for what the context holds.
        body_limit: bytes of a request.
        keep_alive: seconds of silence in a stream after which it is told that the server is there.
    """

    name: str
    keys: tuple[str, ...] = ()
    strict_model: bool = False
    queue_limit: int | None = 128
    most_tokens: int | None = None
    body_limit: int = 4 * MEBIBYTE
    keep_alive: float = 10.0


class Service:
    """Loads a model and answers with it.

    Args:
        load: gives the model; called in a thread of its own.
    """

    def __init__(self, load: Callable[[], Model], options: ServiceOptions) -> None:
        self.options = options
        self.metrics = Metrics(options.name)
        self.draining = False
        self._load = load
        self._loaded: tuple[Model, Worker, Words] | None = None

    def start(self) -> None:
        """Load. It takes its time.

        Raises:
            QuasarError: the model cannot be loaded.
        """
        model = self._load()
        self._loaded = (model, Worker(model, self.metrics, self.options.queue_limit), Words(model.tokenizer))

    def close(self) -> None:
        """End what is open, and free the engines."""
        if self._loaded is not None:
            model, worker, _ = self._loaded
            worker.close()
            model.close()

    @property
    def state(self) -> State:
        """Whether requests are taken."""
        return "draining" if self.draining else "loading" if self._loaded is None else "ready"

    @property
    def healthy(self) -> bool:
        """Whether answers can be expected."""
        return self.state == "ready" and self.worker.healthy

    @property
    def busy(self) -> bool:
        """Whether an answer is open or waits."""
        return self._loaded is not None and self._loaded[1].busy

    @property
    def model(self) -> Model:
        """The model.

        Raises:
            RequestError: it is not there yet.
        """
        return self._there()[0]

    @property
    def worker(self) -> Worker:
        """Takes orders; see `model`."""
        return self._there()[1]

    @property
    def words(self) -> Words:
        """Texts of tokens; see `model`."""
        return self._there()[2]

    def _there(self) -> tuple[Model, Worker, Words]:
        if self._loaded is None:
            raise RequestError("the model is being loaded; ask again later", 503)
        return self._loaded

    def check_open(self) -> None:
        """Refuse new work where it will not be done.

        Raises:
            RequestError: the model is loading or draining.
        """
        if self.draining:
            raise RequestError("the server ends; ask another one, or again later", 503)
        self._there()
