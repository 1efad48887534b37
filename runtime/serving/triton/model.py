"""The model that Triton's Python backend runs: requests in, responses out, everything between in `quasar.runtime.serving`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # exists inside the server only

from quasar.engines.errors import QuasarError
from quasar.runtime.loading import load_model
from quasar.runtime.model import Model
from quasar.runtime.model_options import options_from_strings
from quasar.runtime.serving.limits import queue_limit_of
from quasar.runtime.serving.metrics import ACCEPTED_PER_POSITION, COUNTERS, GAUGES, HISTOGRAMS, IDLE, MetricSpec, Tally
from quasar.runtime.serving.relay import Relay, RelayedClient
from quasar.runtime.serving.request import Failure, Part, failure_of
from quasar.runtime.serving.triton.request import TritonOrder, read_request
from quasar.runtime.serving.worker import Worker

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
# by name: the server fills its module after this one is imported
CODES: dict[Failure, str] = {"usage": "INVALID_ARG", "unavailable": "UNAVAILABLE", "internal": "INTERNAL"}


class TritonPythonModel:
    """One instance: the engines of a bundle, in a process of their own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle beside `model.py`; what is wrong with it is the reason that Triton shows for the failed load."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        if args["model_instance_kind"] == "GPU":
            _see_only(int(args["model_instance_device_id"]))
        folder = Path(args["model_repository"]) / args["model_version"]
        prepacked = folder / "prepacked"
        try:
            options = options_from_strings(parameters)
            options = replace(options, verify=True, prepacked=prepacked if prepacked.is_dir() else None)
            queue_limit = queue_limit_of(parameters)
            self._model = load_model(folder / "bundle", options)
        except QuasarError as error:
            raise pb_utils.TritonModelException(f"quasar: {error}") from None
        self._metrics = _Metrics(args["model_name"], args["model_version"])
        self._relay = Relay(self._metrics)
        self._worker = Worker(self._model, self._relay, queue_limit)

    def execute(self, requests: Sequence[Any]) -> None:
        """Take in requests; their responses come later."""
        for request in requests:
            client = _Client(request)
            try:
                client.order = _read(self._model, request)
            except Exception as error:  # it is this request's alone
                client.fail(*failure_of(error))
                continue
            self._worker.submit(client.order, RelayedClient(client, self._relay))

    def is_ready(self) -> bool:
        """Whether answers can be expected."""
        return self._worker.healthy

    def finalize(self) -> None:
        """End what is open, and free everything."""
        self._worker.close()
        self._relay.close()
        self._metrics.free()
        self._model.close()


def _read(model: Model, request: Any) -> TritonOrder:
    tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    return read_request(model, tensors, json.loads(request.parameters() or "{}"))


def _see_only(device: int) -> None:
    """Make one GPU the only one of this process: engines run on the first that they see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device] if visible else str(device)


class _Client:
    """Whoever sent a request."""

    order: TritonOrder

    def __init__(self, request: Any) -> None:
        self._request = request
        self._sender = request.get_response_sender()

    def is_cancelled(self) -> bool:
        """See `Client.is_cancelled`."""
        return bool(self._request.is_cancelled())

    def send(self, part: Part) -> None:
        """See `Client.send`."""
        tensors = [_strings("text_output", part.text), _numbers("token_ids", part.ids, np.int64)]
        if self.order.count_input:
            tensors.append(_numbers("num_input_tokens", [len(self.order.prompt.ids)], np.int32))
        if self.order.count_output:
            tensors.append(_numbers("num_output_tokens", [len(part.ids)], np.int32))
        if part.finish_reason is None:
            self._sender.send(pb_utils.InferenceResponse(tensors))
            return
        tensors += [_strings("finish_reason", part.finish_reason), _strings("statistics", json.dumps(part.statistics))]
        self._sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL)

    def fail(self, message: str, failure: Failure) -> None:
        """See `Client.fail`."""
        error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, CODES[failure]))
        self._sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)

    def leave(self) -> None:
        """See `Client.leave`."""
        self._sender.send(flags=FINAL)


def _strings(name: str, text: str) -> Any:
    return pb_utils.Tensor(name, np.array([[text.encode("utf-8")]], dtype=np.object_))


def _numbers(name: str, values: Sequence[int], dtype: type) -> Any:
    return pb_utils.Tensor(name, np.array([values], dtype=dtype))


class _Metrics:
    """Metrics beside Triton's own. Instances of a model share them, so gauges are counted up and down, too."""

    def __init__(self, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        kinds = pb_utils.MetricFamily
        self._families: list[Any] = []
        self._metrics: dict[str, Any] = {}
        self._gauges = IDLE
        for kind, specs in ((kinds.COUNTER, COUNTERS), (kinds.GAUGE, GAUGES), (kinds.HISTOGRAM, HISTOGRAMS)):
            for spec in specs:
                buckets = {"buckets": list(spec.buckets)} if spec.buckets else {}
                self._metrics[spec.name] = self._family(spec, kind).Metric(labels=self._labels, **buckets)
        self._positions: list[Any] = []
        self._by_position = self._family(ACCEPTED_PER_POSITION, kinds.COUNTER)

    def _family(self, spec: MetricSpec, kind: Any) -> Any:
        self._families.append(pb_utils.MetricFamily(name=spec.name, description=spec.meaning, kind=kind))
        return self._families[-1]

    def report(self, tally: Tally) -> None:
        """See `Reporter.report`."""
        changes = {name: value - self._gauges[name] for name, value in tally.gauges.items()}
        self._gauges = tally.gauges
        for name, count in {**tally.counts, **changes}.items():
            if count:
                self._metrics[name].increment(count)
        for position in range(len(self._positions), len(tally.positions)):
            labels = {**self._labels, ACCEPTED_PER_POSITION.label: str(position)}
            self._positions.append(self._by_position.Metric(labels=labels))
        for metric, count in zip(self._positions, tally.positions, strict=False):
            if count:
                metric.increment(count)
        for name, values in tally.observations.items():
            for value in values:
                self._metrics[name].observe(value)

    def free(self) -> None:
        """Free the metrics, and then their families: the server's stub crashes at unloading otherwise."""
        self._metrics.clear()
        self._positions.clear()
        self._by_position = None
        self._families.clear()
