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
from quasar.runtime.serving.openai.settings import Settings, add_settings, read_settings
from quasar.runtime.serving.ray.resources import assigned_threads

MOST_REPLICAS = 8
DRAIN_SECONDS = 30.0
"""For open answers of a replica that ends; as of `quasar-serve`."""


@serve.ingress()
class Replica:
    """One process with the model. Its threads are the CPUs that Ray gives it, unless the settings say otherwise."""

    def __init__(self, settings: Settings) -> None:
        model = settings.model if settings.model.threads else replace(settings.model, threads=assigned_threads())
        self._origins = settings.origins
        self._service = replace(settings, model=model).service()
        self._service.start()

    def __serve_build_asgi_app__(self) -> Starlette:
        return make_app(self._service, self._origins)

    def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that is not well.

        Raises:
            QuasarError: the engines fail.
        """
        if not self._service.healthy:
            raise QuasarError("the engines fail; see the replica's log")

    def __del__(self) -> None:
        self._service.close()


class _Parser(argparse.ArgumentParser):
    """Reads options that are named, not typed; wrong ones are errors, not the end of the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def read(self, bundle: str, given: Mapping[str, Any]) -> argparse.Namespace:
        """Options by name: true and false set and take back flags, a list is an option that is repeated."""
        words = []
        for name, value in given.items():
            for one in value if isinstance(value, list) else [value]:
                words += self._words(name.replace("_", "-"), str(one))
        return self.parse_args([*words, "--", bundle])

    def _words(self, option: str, value: str) -> list[str]:
        if value.lower() == "true":
            return [f"--{option}"]
        if value.lower() == "false" and f"--{option}" in self._option_string_actions:
            opposite = f"--no-{option}"
            return [opposite] if opposite in self._option_string_actions else []
        return [f"--{option}={value}"]


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
    sequences = settings.model.sequences
    deployment = serve.deployment(
        name="quasar",
        # as many again as share passes, so that the next is there when one ends; the others wait where any replica may take them
        max_ongoing_requests=2 * sequences,
        max_queued_requests=settings.about.queue_limit,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        ray_actor_options={"num_cpus": settings.model.threads or 1},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": sequences,
        },
    )(Replica)
    return deployment.bind(settings)
