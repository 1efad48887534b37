"""The HTTP server on Ray Serve: `serve run quasar.runtime.serving.ray.deployment:build bundle=DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from ray import serve
from ray.serve import Application
from starlette.applications import Starlette

from quasar.engines.errors import QuasarError, UsageError
from quasar.runtime.serving.openai.app import make_app
from quasar.runtime.serving.openai.service import Service
from quasar.runtime.serving.openai.settings import Settings, add_settings, read_settings
from quasar.runtime.serving.ray.resources import assigned_threads
from quasar.runtime.serving.worker import UNWELL_SECONDS

MOST_REPLICAS = 8
DRAIN_SECONDS = 30.0
"""For open answers of a replica that ends; as of `quasar-serve`."""


@serve.ingress()
class Replica:
    """One process with the model. Its threads are the CPUs that Ray gives it, unless the settings say otherwise."""

    def __init__(self, settings: Settings) -> None:
        self._service: Service | None = None
        model = settings.model if settings.model.threads else replace(settings.model, threads=assigned_threads())
        self._origins = settings.origins
        self._service = replace(settings, model=model).service()
        self._service.start()

    def __serve_build_asgi_app__(self) -> Starlette:
        assert self._service is not None
        return make_app(self._service, self._origins)

    def check_health(self) -> None:
        """The check after which Ray replaces a replica.

        Raises:
            QuasarError: the engines fail.
        """
        if self._service is None or not self._service.healthy:
            raise QuasarError("the engines fail; see the replica's log")

    def __del__(self) -> None:
        if self._service is not None:
            self._service.close()


class _Parser(argparse.ArgumentParser):
    """Reads options that are named, not typed; wrong ones are errors, not the end of the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def read(self, bundle: str, given: Mapping[str, Any]) -> argparse.Namespace:
        """The options that names give: true and false set and take back flags, a list repeats its option."""
        words = []
        for name, value in given.items():
            for one in value if isinstance(value, list) else [value]:
                words += self._words(name.replace("_", "-"), str(one))
        return self.parse_args([*words, "--", bundle])

    def _words(self, option: str, value: str) -> list[str]:
        action = self._option_string_actions.get(f"--{option}")
        if action is None or action.nargs != 0 or value.lower() not in ("true", "false"):
            return [f"--{option}={value}"]
        opposite = f"--no-{option}"
        if value.lower() == "true":
            return [f"--{option}"]
        return [opposite] if opposite in self._option_string_actions else []


def build(args: Mapping[str, Any]) -> Application:
    """The application, for `serve run` and configuration files.

    Args:
        args: `bundle`, options of `quasar-serve` by name (`sequences`, `max_queue`, ...), `min_replicas` and `max_replicas`.

    Raises:
        UsageError: no such option, bundle or chain, or a value that has no meaning.
        BundleError: what is there is not a whole bundle.
    """
    given = dict(args)
    parser = _Parser(prog="quasar", add_help=False, allow_abbrev=False)
    add_settings(parser)
    parser.add_argument("--min-replicas", type=int, default=1)
    parser.add_argument("--max-replicas", type=int, default=MOST_REPLICAS)
    if "bundle" not in given:
        raise UsageError("no bundle is named; give bundle=DIR")
    options = parser.read(str(given.pop("bundle")), given)
    settings = read_settings(options)
    if not 0 <= options.min_replicas <= options.max_replicas or not options.max_replicas:
        raise UsageError(f"replicas: {options.min_replicas} to {options.max_replicas}; give 0 or more to 1 or more")
    if not settings.about.queue_limit:
        raise UsageError("max_queue is 0; Ray takes 1 or more")
    # Ray bounds what a replica is given: a limit of its own would refuse what other replicas could take
    settings_of_replica = replace(settings, about=replace(settings.about, queue_limit=None))
    sequences = settings.model.sequences
    deployment = serve.deployment(
        name="quasar",
        # twice the sequences: the next request is there when an answer ends, and the others wait where any replica may take them
        max_ongoing_requests=2 * sequences,
        max_queued_requests=settings.about.queue_limit,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        # a failed pass counts for 30 seconds: only where passes fail again and again are there three bad checks
        health_check_period_s=UNWELL_SECONDS,
        ray_actor_options={"num_cpus": settings.model.threads or 1},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": sequences,
        },
    )(Replica)
    return deployment.bind(settings_of_replica)
