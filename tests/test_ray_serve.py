"""Tier 3: the HTTP server on a real, local Ray Serve."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml
from openai import BadRequestError, OpenAI
from served import metric, until

from quasar.engines.errors import UsageError
from quasar.runtime import SamplingParams, load

pytest.importorskip("ray.serve", reason="the extra ray is not installed: pip install -c constraints.txt '.[ray]'")

from quasar.runtime.serving.ray.deployment import build

QUESTION = [{"role": "user", "content": "How many legs have 3 cats and 2 birds?"}]
START_SECONDS = 180.0


class Application:
    """`serve run` with a configuration file, in processes of its own; ends them all."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = {
            "http_options": {"host": "127.0.0.1", "port": port},
            "applications": [
                {
                    "name": "quasar",
                    "import_path": "quasar.runtime.serving.ray.deployment:build",
                    "args": {"bundle": str(bundle), "sequences": 2, "chain": "prompt-lookup > int8"},
                    "deployments": [
                        {
                            "name": "quasar",
                            "ray_actor_options": {"num_cpus": 0.5},
                            "autoscaling_config": {
                                "min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2,
                                "upscale_delay_s": 1, "metrics_interval_s": 0.5, "look_back_period_s": 2,
                            },
                        }
                    ],
                }
            ],
        }  # fmt: skip
        file = folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.log = folder / "serve.log"
        command = [str(Path(sys.executable).with_name("serve")), "run", str(file)]
        environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> Application:
        try:
            assert until(self.healthy, START_SECONDS), self.log.read_text()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def healthy(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            return False


def replicas() -> int:
    """Processes that are replicas."""
    found = 0
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found += b"ServeReplica:quasar" in file.read_bytes()
    return found


@pytest.fixture(scope="module")
def application(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with Application(demo_bundle, tmp_path_factory.mktemp("serve")) as application:
        yield application


def test_an_unchanged_client_streams_the_library_s_answer(application: Application, demo_bundle: Path) -> None:
    with load(demo_bundle, chain="int8") as model:
        expected = model.generate(messages=QUESTION, params=SamplingParams(max_new_tokens=32))
    client = OpenAI(base_url=f"{application.url}/v1", api_key="none")
    chunks = list(client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=32, stream=True))  # type: ignore[call-overload]
    assert len(chunks) > 2
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert chunks[-1].choices[0].finish_reason == expected.finish_reason
    with pytest.raises(BadRequestError, match="temperature"):
        client.chat.completions.create(model="demo", messages=QUESTION, temperature=-1)  # type: ignore[arg-type]


def test_a_client_that_goes_away_is_forgotten(application: Application) -> None:
    body = {"messages": QUESTION, "stream": True, "ignore_eos": True, "max_tokens": 4000}
    before = metric(application.http, "quasar_generation_tokens_total")
    with application.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        for _ in range(3):
            next(lines)
        assert until(lambda: metric(application.http, "quasar_num_requests_running") == 1, 10)
    assert until(lambda: metric(application.http, "quasar_num_requests_running") == 0)
    assert metric(application.http, "quasar_generation_tokens_total") - before < 3900


def test_replicas_are_added_where_many_ask(application: Application) -> None:
    """Eight clients ask at a time, and the share of a replica is two."""
    assert replicas() == 1
    ended = threading.Event()
    failures: list[Any] = []

    def ask() -> None:
        body = {"messages": QUESTION, "ignore_eos": True, "max_tokens": 400}
        with httpx.Client(base_url=application.url, timeout=120) as http:
            while not ended.is_set():
                try:
                    http.post("/v1/chat/completions", json=body).raise_for_status()
                except httpx.HTTPError as error:
                    failures.append(error)
                    return

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for client in clients:
        client.start()
    try:
        assert until(lambda: replicas() == 2, 90)
    finally:
        ended.set()
        for client in clients:
            client.join()
    assert not failures


# ------------------------------------------------------------------------------------------------ what is built


def test_options_are_those_of_the_command(demo_bundle: Path) -> None:
    given = {
        "bundle": demo_bundle, "sequences": "3", "threads": 2, "max_queue": 5, "max-replicas": 4, "min_replicas": 0,
        "strict_model": "false", "prefix_caching": False, "api_key": ["one", "false"], "served_model_name": "-name",
    }  # fmt: skip
    deployment = build(given)._bound_deployment
    config = deployment._deployment_config
    settings = deployment.init_args[0]
    assert config.max_ongoing_requests == 6
    assert config.max_queued_requests == 5
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (0, 4)
    assert config.autoscaling_config.target_ongoing_requests == 3
    assert deployment.ray_actor_options["num_cpus"] == 2
    assert (settings.model.sequences, settings.model.prefix_caching) == (3, False)
    assert (settings.about.keys, settings.about.name, settings.about.strict_model) == (("one", "false"), "-name", False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "bundle=DIR"),
        ({"bundel": "x"}, "bundle=DIR"),
        ({"bundle": "nowhere"}, "nowhere"),
        ({"speed": 3}, "speed"),
        ({"sequences": "many"}, "sequences"),
        ({"port": 80}, "port"),
        ({"chain": "int9"}, "int9"),
        ({"max_replicas": 0}, "replicas"),
        ({"max_queue": 0}, "max_queue"),
        ({"min_replicas": 3, "max_replicas": 2}, "replicas"),
    ],
)
def test_wrong_arguments_are_named(demo_bundle: Path, given: dict[str, Any], message: str) -> None:
    args = given if "bundle" in given or "bundel" in given or not given else {"bundle": demo_bundle, **given}
    with pytest.raises(UsageError, match=message):
        build(args)
