"""A bundle as a model in a repository of Triton Inference Server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quasar.engines.bundle.bundle import MANIFEST, Bundle
from quasar.engines.bundle.directory import atomic_directory
from quasar.engines.bundle.manifest import ONNXRUNTIME
from quasar.engines.errors import UsageError
from quasar.runtime.chain.choice import choose_chain
from quasar.runtime.chain.spec import ChainSpec
from quasar.runtime.defaults import default_params
from quasar.runtime.engines import EnginePool
from quasar.runtime.execution import backend_of, kernels_of, on_gpu
from quasar.runtime.model_options import ModelOptions
from quasar.runtime.serving.triton.page import readme
from quasar.runtime.serving.triton.tensors import INPUTS, OUTPUTS, TensorSpec
from quasar.runtime.tokenizer import Tokenizer

MARK = ".quasar-triton"
"""A file in a model's directory that says who wrote it; only such a model is replaced."""
NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MODEL = '''"""Written by quasar-triton. The model itself is quasar.runtime.serving.triton.model."""

from quasar.runtime.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
WARM_UP_TEXT = "Tom has 3 boxes of 8 pens. He gives away 5 pens. How many pens are left?"
WARM_UP_TOKENS = 16
MOST_INSTANCES = 1024
MOST_WAITING = 1 << 20


@dataclass(frozen=True)
class TritonOptions:
    """How a bundle is served.

    Attributes:
        repository: the directory that holds the models; made where there is none.
        name: of the model; letters, digits, dots, dashes and underscores.
        model: how an instance runs the bundle.
        instances: processes that serve it, each with weights of its own; on GPUs, for each GPU.
        queue_limit: requests that may wait in an instance; None for any number.
        copy: put the bundle's files into the repository; else a link to the bundle.
        share_weights: save the weights as this machine's processor wants them, for its instances to share.
    """

    repository: Path
    name: str
    model: ModelOptions
    instances: int = 1
    queue_limit: int | None = None
    copy: bool = False
    share_weights: bool = False

    def __post_init__(self) -> None:
        if not NAMES.fullmatch(self.name):
            raise UsageError(f"--name {self.name!r}: give letters, digits, dots, dashes and underscores")
        if not 1 <= self.instances <= MOST_INSTANCES:
            raise UsageError(f"--instances {self.instances}: give 1 to {MOST_INSTANCES}")
        if self.queue_limit is not None and not 0 <= self.queue_limit <= MOST_WAITING:
            raise UsageError(f"--queue-limit {self.queue_limit}: give the most requests that may wait, 0 to {MOST_WAITING}")


def write_model(bundle: Bundle, options: TritonOptions) -> Path:
    """Write the model; its directory appears whole or not at all.

    Raises:
        UsageError: no such chain or backend, or something else is where the model would be.
    """
    chain = check_options(bundle, options.model)
    output = options.repository / options.name
    _check_output(output)
    if not options.copy and bundle.root.resolve().is_relative_to(output.resolve()):
        raise UsageError(f"{bundle.root}: it lies inside the model that would be replaced; a link would lead nowhere, add --copy")
    if options.share_weights and on_gpu(options.model, bundle):
        raise UsageError("--share-weights is for ONNX Runtime on a CPU; leave it out")
    defaults = default_params(bundle, options.model.generation_config)
    target = bundle.engine(chain.target)
    warm_up = _warm_up_tensors(Tokenizer(bundle.tokenizer_folder(), target.vocab_size), target.max_length)
    text = _format(model_config(bundle, options, warm_up))
    with atomic_directory(output) as partial:
        (partial / MARK).write_text("quasar-triton replaces this directory\n", encoding="utf-8")
        (partial / "config.pbtxt").write_text(text, encoding="utf-8")
        page = readme(bundle, options.name, chain, options.model, options.instances, _extra(bundle, options.model), defaults)
        (partial / "README.md").write_text(page, encoding="utf-8")
        (partial / "1").mkdir()
        (partial / "1" / "model.py").write_text(MODEL, encoding="utf-8")
        _place_bundle(bundle, partial / "1" / "bundle", options.copy)
        if options.share_weights:
            from quasar.engines.onnxruntime.prepacked import save_prepacked

            save_prepacked(bundle, chain.engines, partial / "1" / "prepacked", kernels_of(options.model, bundle))
        (partial / "warmup").mkdir()
        for tensor, value in warm_up.items():
            (partial / "warmup" / tensor).write_bytes(value.tobytes())
    return output


def check_options(bundle: Bundle, options: ModelOptions) -> ChainSpec:
    """The chain, once all is known to go together.

    Raises:
        UsageError: with the option that does not.
    """
    chain = choose_chain(bundle, options.chain)
    options.draft_lengths(chain)
    options.pool_path(chain)
    EnginePool(bundle, options).check(chain)
    return chain


def model_config(bundle: Bundle, options: TritonOptions, warm_up: Mapping[str, NDArray[Any]]) -> Any:
    """The configuration, a `ModelConfig` message of Triton's.

    Args:
        warm_up: tensors of the request that is answered before the model counts as ready.
    """
    from tritonclient.grpc import model_config_pb2 as pb

    config = pb.ModelConfig(name=options.name, backend="python")
    # the tensors come as [1, N], a batch of one; requests are put together by the model, not by Triton
    config.max_batch_size = 1
    config.model_transaction_policy.decoupled = True
    config.input.extend(pb.ModelInput(optional=True, **_tensor(pb, spec)) for spec in INPUTS)
    config.output.extend(pb.ModelOutput(**_tensor(pb, spec)) for spec in OUTPUTS)
    kind = pb.ModelInstanceGroup.KIND_GPU if on_gpu(options.model, bundle) else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(count=options.instances, kind=kind)
    limit = {} if options.queue_limit is None else {"queue_limit": str(options.queue_limit)}
    for name, value in {**options.model.to_strings(), **limit}.items():
        config.parameters[name].string_value = value
    sample = config.model_warmup.add(name="answer", batch_size=1, count=1)
    kinds = {spec.name: spec.kind for spec in INPUTS}
    for name, array in warm_up.items():
        tensor = sample.inputs[name]
        tensor.data_type = getattr(pb, f"TYPE_{kinds[name]}")
        tensor.dims.append(array.size)
        tensor.input_data_file = name
    return config


def _tensor(pb: Any, spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": getattr(pb, f"TYPE_{spec.kind}"), "dims": [spec.length]}


def _format(config: Any) -> str:
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    return text


def _extra(bundle: Bundle, options: ModelOptions) -> str:
    """The extra of the distribution that runs the bundle so."""
    backend = backend_of(options, bundle)
    if backend != ONNXRUNTIME:
        return backend
    return "gpu" if on_gpu(options, bundle) else "cpu"


def _warm_up_tensors(tokenizer: Tokenizer, max_length: int) -> dict[str, NDArray[Any]]:
    ids: Sequence[int] = (tokenizer.encode(WARM_UP_TEXT) or [0])[: max_length // 2]
    return {
        "token_ids": np.array(ids, dtype=np.int64),
        "max_tokens": np.array([WARM_UP_TOKENS], dtype=np.int32),
        "ignore_eos": np.array([True]),
    }


def _check_output(output: Path) -> None:
    standing = next(parent for parent in output.absolute().parents if parent.exists())
    if not standing.is_dir():
        raise UsageError(f"{standing}: a file, so there can be no repository; choose another --repository")
    if output.is_dir() and (output / MARK).is_file():
        return
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise UsageError(f"{output}: something that quasar-triton did not write is there; choose another --name or --repository")


def _place_bundle(bundle: Bundle, place: Path, copy: bool) -> None:
    if not copy:
        place.symlink_to(bundle.root.resolve(), target_is_directory=True)
        return
    for name in (MANIFEST, *(file.path for file in bundle.manifest.files)):
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(name), target)
