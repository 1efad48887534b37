"""The page that lies beside a served model: how to start a server with it, and how to ask it."""

from __future__ import annotations

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.bundle.manifest import SAMPLING
from quasar.runtime.chain.spec import ChainSpec
from quasar.runtime.execution import running_entry
from quasar.runtime.model_options import ModelOptions
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.serving.triton.tensors import INPUTS, OUTPUTS, TensorSpec

PAGE = """# {name}

`{model}` with the chain `{chain}`, written by `quasar-triton`. {instances} instance(s), each a process with weights of its own;
each works on {sequences} answer(s) at the same time, which share passes, and further requests wait in order.
The KV caches take up to {cache_mb:.0f} MB for each answer.

## Start

With docker: the bundle has to be inside the repository (write the model with `--copy`), or mounted where its link points to.
REPOSITORY and QUASAR, a checkout of the project, are absolute paths; IMAGE is a release of NVIDIA's image
`tritonserver`, with a tag that ends in `-py3`. This command has not been tried.

```bash
docker run --rm --shm-size=1g -p 8000:8000 -p 8001:8001 -p 8002:8002 -v REPOSITORY:/models:ro -v QUASAR:/quasar:ro \\
  IMAGE \\
  sh -c "cp -r /quasar /tmp/quasar && pip install '/tmp/quasar[{extra}]' && tritonserver --model-repository=/models"
```

Without docker, where `tritonserver` is installed: VENV is a virtual environment with Quasar (`pip install 'QUASAR[{extra}]'`),
of the Python version that the server's Python backend was built for; that version's libpython has to be found
(`LD_LIBRARY_PATH`), and the Python backend of servers of 2024 needs `numpy<2` in VENV.

```bash
PATH=VENV/bin:$PATH tritonserver --model-repository=REPOSITORY --model-control-mode=explicit --load-model={name}
```

In place of `PATH`, an environment packed with conda-pack can be named in `config.pbtxt`:
`parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "ENVIRONMENT.tar.gz" }} }}`.

## Ask

```bash
curl -s localhost:8000/v2/models/{name}/generate -d '{{"text_input": "1 + 1 =", "max_tokens": 8}}'
curl -sN localhost:8000/v2/models/{name}/generate_stream \\
  -d '{{"messages": "[{{\\"role\\": \\"user\\", \\"content\\": \\"Hello\\"}}]", "stream": true}}'
curl -s localhost:8002/metrics | grep quasar_
```

Triton's OpenAI frontend drives it as it is (`--tokenizer` takes the bundle's `tokenizer` folder).

| input | type | (default) |
|---|---|---|
{inputs}

Exactly one of `text_input`, `messages` and `token_ids` is the prompt. Tensors have the shape [1, N].
Sampling where a request does not say: {defaults}.

| output | type | |
|---|---|---|
{outputs}
"""


def readme(
    bundle: Bundle, name: str, chain: ChainSpec, model: ModelOptions, instances: int, extra: str, defaults: SamplingParams
) -> str:
    """The text of a model's `README.md`.

    Args:
        model: how an instance runs the bundle.
        extra: of the distribution, which brings what runs the engines.
        defaults: the sampling that holds where a request does not say.
    """
    return PAGE.format(
        name=name,
        model=bundle.manifest.model["id"],
        chain=chain,
        sequences=model.sequences,
        instances=instances,
        extra=extra,
        defaults=_sampling(defaults),
        cache_mb=sum(_slot_bytes(bundle, chain, model).values()) / 1e6,
        inputs="\n".join(map(_row, INPUTS)),
        outputs="\n".join(map(_row, OUTPUTS)),
    )


def _slot_bytes(bundle: Bundle, chain: ChainSpec, model: ModelOptions) -> dict[str, int]:
    """Bytes of an answer's caches, by the engine whose they are."""
    caches = {name: running_entry(model, bundle, bundle.engine(name)).cache for name in chain.engines}
    return {cache.owner if cache.owner in caches else name: cache.slot_bytes for name, cache in caches.items()}


def _sampling(params: SamplingParams) -> str:
    changed = [name for name in SAMPLING if getattr(params, name) != getattr(SamplingParams(), name)]
    words = [f"{name} {getattr(params, name):g}" for name in changed]
    return ", ".join(["greedy", *words] if params.greedy else words)


def _row(spec: TensorSpec) -> str:
    return f"| `{spec.name}` | {spec.kind} | {spec.meaning} |"
