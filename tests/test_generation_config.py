"""The sampling that a model's authors chose: read at export, carried in the bundle, used where the caller sets nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from models import DEMO
from tritonclient.grpc import model_config_pb2 as pb

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import BundleError, UsageError
from quasar.exporter.cli import main as export_main
from quasar.exporter.model.generation_config import sampling_defaults
from quasar.runtime import Model, SamplingParams, load
from quasar.runtime.bench.cli import main as bench_main
from quasar.runtime.cli import main as generate_main
from quasar.runtime.model_options import options_from_strings
from quasar.runtime.serving.triton.cli import main as triton_main
from quasar.runtime.serving.triton.request import read_request

Capture = pytest.CaptureFixture[str]
QUESTION = "Tom has 3 boxes of 8 pens. How many pens are there?"
CHAT = [{"role": "user", "content": QUESTION}]
GREEDY = SamplingParams()
SAMPLED = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.2}
PENALTY = {"repetition_penalty": 3.0}
"""A default that changes an answer without any chance in it."""

# ------------------------------------------------------------------------------------------------ the checkpoint


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ({}, {}),
        ({"eos_token_id": 2, "transformers_version": "5.0"}, {}),
        # Qwen3, Qwen2.5 and Llama 3.1 Instruct, as published
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
        (
            {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
            {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        ),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        # nobody says that it samples: what is there counts
        ({"temperature": 0.6}, {"temperature": 0.6}),
        ({"top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}),
        ({"min_p": 0.1}, {"temperature": 1.0, "min_p": 0.1}),
        ({"temperature": 1.0, "top_k": 50}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": None, "temperature": 0.6}, {"temperature": 0.6}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": None, "top_p": None}, {"temperature": 1.0}),
        # greedy
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6, "top_k": 50}, {}),
        ({"do_sample": False, "temperature": 0.9, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"do_sample": True, "temperature": 0, "top_p": 0.5, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        # neutral values need no room
        ({"temperature": 0.6, "top_k": 0, "top_p": 1.0, "min_p": 0, "repetition_penalty": 1}, {"temperature": 0.6}),
        ({"temperature": 0.6, "top_k": -1}, {"temperature": 0.6}),
        ({"do_sample": True, "temperature": 0.6, "top_k": None}, {"temperature": 0.6}),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_checkpoint_asks_for(tmp_path: Path, file: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    assert sampling_defaults(tmp_path) == expected


def test_a_checkpoint_without_the_file_asks_for_nothing(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == {}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ('{"temperature": "hot"}', "temperature is 'hot'; it must be 0 (greedy) or more; correct or remove it"),
        ('{"top_p": 3}', "top_p is 3; it must be above 0 and at most 1 (1 keeps all tokens); correct or remove it"),
        ('{"top_k": -5}', "top_k is -5; give an integer, 0 for all tokens; correct or remove it"),
        ('{"top_k": true}', "top_k is True; "),
        ('{"repetition_penalty": [1.1]}', "repetition_penalty is [1.1]; "),
        ('{"temperature": NaN}', "temperature is nan; "),
        ('{"do_sample": "yes", "temperature": 1}', "do_sample is 'yes'; give true or false, or remove it"),
        ('{"do_sample": 1}', "do_sample is 1; give true or false, or remove it"),
        ("[]", "not a JSON object; correct or remove it"),
        ("{", "cannot be read ("),
    ],
)
def test_a_value_without_a_meaning_is_named_with_its_file(tmp_path: Path, file: str, message: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(file)
    with pytest.raises(UsageError) as caught:
        sampling_defaults(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_the_export_carries_it_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    checkpoint = shutil.copytree(DEMO, tmp_path / "model")
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "do_sample": True, **SAMPLED}))
    command = ["--model", str(checkpoint), "--engines", "float", "--max-length", "64", "--num-samples", "2"]
    assert export_main([*command, "--output", str(tmp_path / "bundle")]) == 0
    assert open_bundle(tmp_path / "bundle").manifest.sampling == SAMPLED
    said = "sampling where nothing else is asked for: temperature 0.6, top_k 20, top_p 0.95, repetition_penalty 1.2"
    assert said in capsys.readouterr().out

    (checkpoint / "generation_config.json").write_text('{"top_p": 3}')
    assert export_main([*command, "--output", str(tmp_path / "other")]) == 2
    assert f"{checkpoint / 'generation_config.json'}: top_p is 3" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------------------------------------------ the runtime


def carrying(bundle: Path, copy: Path, sampling: Mapping[str, Any]) -> Path:
    """The bundle with defaults of sampling."""
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    assert manifest["sampling"] == {}
    (copy / "manifest.json").write_text(json.dumps({**manifest, "sampling": dict(sampling)}))
    return copy


@pytest.fixture(scope="module")
def sampled(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carrying(demo_bundle, tmp_path_factory.mktemp("sampled") / "b", SAMPLED)


@pytest.fixture(scope="module")
def penalized(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carrying(demo_bundle, tmp_path_factory.mktemp("penalized") / "b", PENALTY)


@pytest.fixture(scope="module")
def model(penalized: Path) -> Iterator[Model]:
    with load(penalized, chain="int8") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def greedy_ids(demo_bundle: Path) -> list[int]:
    with load(demo_bundle, chain="int8") as loaded:
        return loaded.generate(CHAT, SamplingParams(max_new_tokens=24)).ids


@pytest.fixture(scope="module")
def penalized_ids(demo_bundle: Path, greedy_ids: list[int]) -> list[int]:
    with load(demo_bundle, chain="int8") as loaded:
        ids = loaded.generate(CHAT, SamplingParams(max_new_tokens=24, **PENALTY)).ids
    assert ids != greedy_ids
    return ids


def test_no_params_are_the_bundles_and_given_ones_are_taken_as_they_are(
    model: Model, greedy_ids: list[int], penalized_ids: list[int]
) -> None:
    for ask in (
        lambda params: model.generate(CHAT, params).ids,
        lambda params: model.generate([CHAT], params)[0].ids,
        lambda params: model.stream(CHAT, params).finish().ids,
        lambda params: model.answer(model.read(messages=CHAT), params).finish().ids,
    ):
        assert ask(None)[:24] == penalized_ids
        assert ask(SamplingParams(max_new_tokens=24)) == greedy_ids


def test_changes_go_on_top_of_the_bundles_defaults(sampled: Path) -> None:
    with load(sampled, chain="int8") as model:
        assert model.sampling_params() == SamplingParams(**SAMPLED)
        assert model.sampling_params(temperature=0, seed=3) == SamplingParams(**{**SAMPLED, "temperature": 0}, seed=3)
        with pytest.raises(UsageError, match="top_p is 2"):
            model.sampling_params(top_p=2)
        own = SamplingParams(**SAMPLED, seed=5, max_new_tokens=16)
        assert model.generate(CHAT, model.sampling_params(seed=5, max_new_tokens=16)).ids == model.generate(CHAT, own).ids


def test_the_defaults_can_be_switched_off(penalized: Path, greedy_ids: list[int]) -> None:
    with load(penalized, chain="int8", generation_config="off") as model:
        assert model.sampling_params() == GREEDY
        assert model.generate(CHAT).ids[:24] == greedy_ids
    with pytest.raises(UsageError, match="generation_config is 'on'; it must be one of auto, off"):
        load(penalized, generation_config="on")  # type: ignore[arg-type]


def test_defaults_without_a_meaning_are_the_bundles_fault(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    bundle = carrying(demo_bundle, tmp_path / "b", {"top_p": 3})
    with pytest.raises(BundleError, match=r"manifest\.json: sampling: top_p is 3; .*; export the bundle again"):
        load(bundle)
    assert generate_main([str(bundle), "hi"]) == 4
    assert triton_main([str(bundle), "--repository", str(tmp_path / "r")]) == 4
    capsys.readouterr()
    load(bundle, generation_config="off").close()


# ------------------------------------------------------------------------------------------------ the commands


def test_quasar_generate_takes_what_is_not_given_from_the_bundle(
    penalized: Path, greedy_ids: list[int], penalized_ids: list[int], capsys: Capture
) -> None:
    def ids(*options: str) -> list[int]:
        command = [str(penalized), QUESTION, "--chain", "int8", "--json", "--max-new-tokens", "24"]
        assert generate_main([*command, *options]) == 0
        found: list[int] = json.loads(capsys.readouterr().out)["ids"]
        return found

    assert ids() == ids("--generation-config", "auto") == ids("--temperature", "0") == penalized_ids
    assert ids("--generation-config", "off") == ids("--repetition-penalty", "1") == greedy_ids


def test_temperature_0_is_greedy_on_every_bundle(sampled: Path, demo_bundle: Path, capsys: Capture) -> None:
    command = [QUESTION, "--chain", "int8", "--json", "--max-new-tokens", "16"]
    assert generate_main([str(sampled), *command, "--temperature", "0"]) == 0
    found = json.loads(capsys.readouterr().out)["ids"]
    assert generate_main([str(demo_bundle), *command, "--repetition-penalty", "1.2"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == found


def test_quasar_bench_is_greedy_whatever_the_bundle_says(penalized: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"turns": [QUESTION]}) + "\n")
    command = [str(penalized), "--prompts", str(tmp_path / "prompts.jsonl"), "--chains", "int8", "--repeat", "1"]
    assert bench_main([*command, "--max-new-tokens", "4", "--no-memory", "--json"]) == 0
    sampling = json.loads(capsys.readouterr().out)["settings"]["sampling"]
    assert (sampling["temperature"], sampling["repetition_penalty"]) == (0, 1)


# ------------------------------------------------------------------------------------------------ serving


def test_a_request_takes_what_it_leaves_out_from_the_bundle(sampled: Path) -> None:
    text = {"text_input": np.array([[QUESTION.encode()]], dtype=np.object_)}
    with load(sampled) as model:
        assert read_request(model, text).params == SamplingParams(**SAMPLED)
        cold = {"temperature": np.array([[0.0]], dtype=np.float32), "max_tokens": np.array([[8]], dtype=np.int32)}
        params = read_request(model, {**text, **cold}).params
        assert params == SamplingParams(**{**SAMPLED, "temperature": 0.0}, max_new_tokens=8)
    with load(sampled, generation_config="off") as model:
        assert read_request(model, text).params == GREEDY


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Sampling where a request does not say: temperature 0.6, top_k 20, top_p 0.95, repetition_penalty 1.2."),
        (["--generation-config", "off"], "Sampling where a request does not say: greedy."),
    ],
)
def test_the_served_model_knows_whether_it_takes_them(sampled: Path, tmp_path: Path, options: list[str], said: str) -> None:
    assert triton_main([str(sampled), "--repository", str(tmp_path), "--name", "m", *options]) == 0
    config = text_format.Parse((tmp_path / "m" / "config.pbtxt").read_text(), pb.ModelConfig())
    served = options_from_strings({name: value.string_value for name, value in config.parameters.items()})
    assert served.generation_config == ("off" if options else "auto")
    assert said in (tmp_path / "m" / "README.md").read_text()
