"""Tier 5: a real Triton server, over HTTP and gRPC.

The server comes with the wheel nvidia-pytriton, which is installed into an environment of its own once: below the cache of
pytest, or where QUASAR_TRITON_ENVIRONMENT says.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import struct
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from quasar.runtime import Guide, Model, SamplingParams, load
from quasar.runtime.serving.triton.cli import main as triton_main

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from triton_client import Client
from triton_server import TritonServer, make_environment
from triton_speed import held, stubs

QUESTIONS = [
    f"{name} has {n} {things} and gives away {n // 3} of them. How many {things} are left?"
    for name, n, things in zip(
        ("Tom", "Anna", "A baker", "Lee", "Mia", "Ben", "Eva", "Max"),
        (9, 14, 21, 33, 40, 52, 68, 75),
        ("pens", "books", "rolls", "coins", "cards", "eggs", "cups", "stamps"),
        strict=True,
    )
]
COUNTERS = (
    "rounds",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens",
    "generation_tokens",
    "prompt_tokens",
    "prefix_cache_hits",
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the server's wheel is for Linux")


def chat(question: str) -> str:
    return json.dumps([{"role": "user", "content": question}])


def write(bundle: Path, repository: Path, name: str, *options: str) -> None:
    assert triton_main([str(bundle), "--repository", str(repository), "--name", name, *options]) == 0


@pytest.fixture(scope="session")
def environment(pytestconfig: pytest.Config) -> Path:
    given = os.environ.get("QUASAR_TRITON_ENVIRONMENT")
    cache = pytestconfig.cache
    assert cache is not None
    return make_environment(Path(given) if given else Path(cache.mkdir("triton")) / "environment")


@pytest.fixture(scope="module")
def repository(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`demo`, `other` with another chain, and `broken`, of which a byte was changed."""
    folder = tmp_path_factory.mktemp("repository")
    # batch invariant: else a near-tie may be decided otherwise than in another run, by what pacing measures
    write(demo_bundle, folder, "demo", "--batch-invariant")
    write(demo_bundle, folder, "other", "--chain", "int8", "--sequences", "1", "--queue-limit", "0")
    write(demo_bundle, folder, "broken", "--copy")
    weights = folder / "broken" / "1" / "bundle" / "int8.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def server(environment: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(environment, repository, ["demo"], tmp_path_factory.mktemp("log") / "server.log") as running:
        running.wait_ready("demo")
        yield running


@pytest.fixture(scope="module")
def library(demo_bundle: Path) -> Iterator[Model]:
    with load(demo_bundle, batch_invariant=True) as model:
        yield model


@pytest.fixture(scope="module")
def control(server: TritonServer) -> Iterator[Any]:
    """Loads and unloads models."""
    client = triton_grpc.InferenceServerClient(server.grpc)
    yield client
    client.close()


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc, "demo") as opened:
        yield opened


def post(server: TritonServer, path: str, model: str = "demo", **body: Any) -> tuple[int, str]:
    """(status, body) of a request."""
    request = urllib.request.Request(f"{server.url}/v2/models/{model}/{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(server: TritonServer, name: str, model: str = "demo") -> float:
    found = re.findall(rf'^{name}{{model="{model}",version="1"}} (\S+)$', server.metrics(), re.MULTILINE)
    assert len(found) == 1, name
    return float(found[0])


def counted(server: TritonServer) -> dict[str, float]:
    return {name: metric(server, f"quasar_{name}_total") for name in COUNTERS} | {
        name: metric(server, f"quasar_{name}_count") for name in ("tokens_per_round", "time_to_first_token_seconds")
    }


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settled(server: TritonServer) -> dict[str, float]:
    """What was counted, once what earlier answers add has arrived: metrics are reported twice a second."""
    now, before = counted(server), None
    while now != before:
        time.sleep(1.2)
        now, before = counted(server), now
    return now


def until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether something comes true; metrics are reported after the answer is sent."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# ------------------------------------------------------------------------------------------------ answers


def test_generate_over_http_is_the_librarys_answer(server: TritonServer, library: Model) -> None:
    own = library.generate(messages=json.loads(chat(QUESTIONS[0])), params=SamplingParams(max_new_tokens=60))
    status, body = post(server, "generate", messages=chat(QUESTIONS[0]), max_tokens=60)
    answer = json.loads(body)
    assert status == 200, body
    assert (answer["text_output"], answer["token_ids"], answer["finish_reason"]) == (own.text, own.ids, own.finish_reason)
    statistics = json.loads(answer["statistics"])
    assert statistics["new_tokens"] == len(own.ids)
    assert statistics["prompt_tokens"] == own.statistics.prompt_tokens


def test_generate_stream_over_http_gives_parts(server: TritonServer, library: Model) -> None:
    own = library.generate("The answer is", SamplingParams(max_new_tokens=300, ignore_eos=True))
    status, body = post(server, "generate_stream", text_input="The answer is", max_tokens=300, ignore_eos=True, stream=True)
    parts = [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line]
    assert status == 200, body
    assert len(parts) > 2
    assert "".join(part["text_output"] for part in parts) == own.text
    assert [part.get("finish_reason") for part in parts] == [None] * (len(parts) - 1) + ["length"]


def test_grpc_streaming_is_the_librarys_answer(client: Client, library: Model) -> None:
    own = library.generate(messages=json.loads(chat(QUESTIONS[1])), params=SamplingParams(max_new_tokens=200, ignore_eos=True))
    answer = client.ask(
        messages=chat(QUESTIONS[1]), max_tokens=200, ignore_eos=True, stream=True, return_num_input_tokens=True,
        return_num_output_tokens=True,
    )  # fmt: skip
    assert (answer.text, answer.ids, answer.finish_reason) == (own.text, own.ids, own.finish_reason)
    assert len(answer.stamps) > 2
    assert answer.num_input_tokens == own.statistics.prompt_tokens
    assert answer.num_output_tokens == 200  # over all parts


def test_without_streaming_there_is_one_response(client: Client) -> None:
    assert len(client.ask(text_input="1 + 1 =", max_tokens=200, ignore_eos=True).stamps) == 1


def test_sampling_is_the_librarys(client: Client, library: Model) -> None:
    params = SamplingParams(
        max_new_tokens=40, temperature=0.7, top_p=0.9, top_k=50, seed=7, frequency_penalty=0.3, stop=("####",)
    )
    own = library.generate(messages=json.loads(chat(QUESTIONS[2])), params=params)
    answer = client.ask(
        messages=chat(QUESTIONS[2]), max_tokens=40, temperature=0.7, top_p=0.9, top_k=50, seed=7, frequency_penalty=0.3,
        stop_words=["####"], stream=True,
    )  # fmt: skip
    assert (answer.text, answer.ids, answer.finish_reason) == (own.text, own.ids, own.finish_reason)


def test_the_prompt_goes_before_the_answer_where_asked_for(client: Client, library: Model) -> None:
    own = library.generate("1 + 1 =", SamplingParams(max_new_tokens=6))
    answer = client.ask(text_input="1 + 1 =", max_tokens=6, exclude_input_in_output=False, stream=True)
    assert answer.text == "1 + 1 =" + own.text


def test_eight_clients_at_once_get_the_librarys_answers_and_share_passes(server: TritonServer, library: Model) -> None:
    params = SamplingParams(max_new_tokens=200, ignore_eos=True)
    own = [library.generate(messages=json.loads(chat(question)), params=params) for question in QUESTIONS]

    def ask(question: str) -> Any:
        with Client(server.grpc, "demo") as client:
            return client.ask(messages=chat(question), max_tokens=200, ignore_eos=True, stream=True)

    settled(server)
    before = [metric(server, f"quasar_{name}_total") for name in ("rounds", "steps")]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, QUESTIONS))
    assert len({tuple(answer.ids) for answer in answers}) == 8
    assert [answer.ids for answer in answers] == [one.ids for one in own]
    assert [answer.text for answer in answers] == [one.text for one in own]
    settled(server)
    rounds, steps = (
        metric(server, f"quasar_{name}_total") - earlier for name, earlier in zip(("rounds", "steps"), before, strict=True)
    )
    assert rounds == sum(answer.statistics["rounds"] for answer in answers)
    assert steps < rounds / 2


# ------------------------------------------------------------------------------------------------ the OpenAI frontend


def openai_request(prompt: str) -> service_pb2.ModelInferRequest:
    """What Triton's OpenAI frontend sends for a completion, as bytes: every tensor [[x]]."""

    def string(text: str) -> bytes:
        return struct.pack("<I", len(text.encode())) + text.encode()

    tensors: list[tuple[str, str, list[int], bytes]] = [
        ("text_input", "BYTES", [1, 1], string(prompt)),
        ("stream", "BOOL", [1, 1], b"\x00"),
        ("max_tokens", "INT32", [1, 1], struct.pack("<i", 24)),
        ("stop_words", "BYTES", [1, 2], string("\n\n\n") + string("zzz")),
        ("top_p", "FP32", [1, 1], struct.pack("<f", 0.9)),
        ("frequency_penalty", "FP32", [1, 1], struct.pack("<f", 0.0)),
        ("presence_penalty", "FP32", [1, 1], struct.pack("<f", 0.5)),
        ("seed", "UINT64", [1, 1], struct.pack("<Q", 2**63 + 5)),
        ("temperature", "FP32", [1, 1], struct.pack("<f", 0.7)),
        ("exclude_input_in_output", "BOOL", [1, 1], b"\x01"),
        ("return_num_input_tokens", "BOOL", [1, 1], b"\x01"),
        ("return_num_output_tokens", "BOOL", [1, 1], b"\x01"),
    ]
    request = service_pb2.ModelInferRequest(model_name="demo", id="1")
    for name, datatype, shape, raw in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return request


def test_the_tensors_of_the_openai_frontend(server: TritonServer, library: Model) -> None:
    params = SamplingParams(24, temperature=0.7, top_p=0.9, presence_penalty=0.5, seed=2**63 + 5, stop=("\n\n\n", "zzz"))
    own = library.generate("Tom has 3 pens. He", params)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        responses = list(stub.ModelStreamInfer(iter([openai_request("Tom has 3 pens. He")]), timeout=60))
    # of an answer that is not streamed the frontend takes exactly one response, which is the final one
    assert [response.error_message for response in responses] == [""]
    response = responses[0].infer_response
    outputs = {
        output.name: (output.datatype, list(output.shape), raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    text = own.text.encode()
    # the frontend reads the text from the buffer, after its length
    assert outputs["text_output"] == ("BYTES", [1, 1], struct.pack("<I", len(text)) + text)
    assert outputs["num_input_tokens"] == ("INT32", [1, 1], struct.pack("<i", own.statistics.prompt_tokens))
    assert outputs["num_output_tokens"] == ("INT32", [1, 1], struct.pack("<i", len(own.ids)))


def test_an_answer_has_the_form_that_was_asked_for(client: Client, library: Model) -> None:
    schema = {"type": "object", "properties": {"number_of_rolls": {"enum": [7, 8, 9]}}, "required": ["number_of_rolls"]}
    schema["additionalProperties"] = False
    guide = {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": json.dumps(schema)}
    answer = client.ask(text_input="A baker has", **guide)
    assert answer.text == library.generate("A baker has", SamplingParams(guide=Guide.json_schema(schema))).text
    assert json.loads(answer.text)["number_of_rolls"] in (7, 8, 9)
    with pytest.raises(InferenceServerException, match="guided_decoding_guide: regex: unclosed group"):
        client.ask(text_input="x", guided_decoding_guide_type="regex", guided_decoding_guide="(")


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; give an integer of at least 1"),
        ({"temperature": -1}, "temperature is -1.0"),
        ({"top_p": 0}, "top_p is 0.0"),
        ({"max_token": 5}, "max_token: no input of this model has this name"),
        ({"messages": "[]"}, "text_input and messages given"),
        ({"token_ids": [1, 2]}, "text_input and token_ids given"),
        ({"text_input": ""}, "text_input: the prompt is empty"),
    ],
)
def test_bad_parameters_are_named(server: TritonServer, body: dict[str, Any], message: str) -> None:
    status, text = post(server, "generate", **{"text_input": "1 + 1 =", **body})
    assert status == 400, text
    assert message in json.loads(text)["error"]
    assert "\n" not in json.loads(text)["error"]


def test_a_prompt_that_is_too_long_is_refused(server: TritonServer, client: Client, library: Model) -> None:
    positions = min(engine.spec.max_length for engine in library.engines.values())
    with pytest.raises(InferenceServerException, match=f"token_ids: the prompt has {positions} tokens"):
        client.ask(token_ids=[5] * positions)
    assert client.ask(token_ids=[5] * (positions - 1), max_tokens=5).finish_reason == "length"  # the longest that fits


def test_errors_of_one_request_leave_the_others_alone(server: TritonServer, library: Model) -> None:
    own = library.generate(QUESTIONS[0], SamplingParams(max_new_tokens=150, ignore_eos=True)).ids

    def ask(number: int) -> Any:
        with Client(server.grpc, "demo") as client:
            if number % 2:
                return client.ask(text_input=QUESTIONS[0], max_tokens=150, ignore_eos=True, stream=True).ids
            with pytest.raises(InferenceServerException):
                client.ask(text_input=QUESTIONS[0], temperature=-1.0)
            return None

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(16))) == [None, own] * 8


def test_a_full_queue_refuses_at_once(server: TritonServer, control: Any) -> None:
    control.load_model("other")  # one sequence, and none may wait
    client = Client(server.grpc, "other")
    try:
        next(client.responses(text_input="1 + 1 =", max_tokens=4000, ignore_eos=True, stream=True))
        status, body = post(server, "generate", "other", text_input="1 + 1 =")
        assert status >= 400, body  # this server's generate endpoint says 400 whatever the error's code
        assert "1 requests are worked on and 0 wait, which is the limit; ask again later" in body
        assert until(lambda: metric(server, "quasar_num_requests_running", "other") == 1)
    finally:
        client.close(cancel=True)
    assert until(lambda: metric(server, "quasar_num_requests_running", "other") == 0)
    assert post(server, "generate", "other", text_input="1 + 1 =", max_tokens=4)[0] == 200
    control.unload_model("other")
    assert until(lambda: not server.is_ready("other"))


# ------------------------------------------------------------------------------------------------ clients that go away


def ends_early(server: TritonServer, before: float, asked_for: int) -> bool:
    """Whether the server stops making tokens, long before it has made all that were asked for."""
    last = -1.0
    for _ in range(40):
        now = metric(server, "quasar_generation_tokens_total")
        if now == last and now > before:
            return now - before < asked_for / 2
        last = now
        time.sleep(0.7)  # longer than between two reports
    return False


def test_a_grpc_client_that_drops_ends_its_answer(server: TritonServer) -> None:
    before = metric(server, "quasar_generation_tokens_total")
    client = Client(server.grpc, "demo")
    next(client.responses(text_input="1 + 1 =", max_tokens=4000, ignore_eos=True, stream=True))
    client.close(cancel=True)
    assert ends_early(server, before, 4000)


def test_an_http_client_that_drops_ends_its_answer(server: TritonServer, client: Client) -> None:
    before = metric(server, "quasar_generation_tokens_total")
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    body = json.dumps({"text_input": "1 + 1 =", "max_tokens": 4000, "ignore_eos": True, "stream": True})
    connection.request("POST", "/v2/models/demo/generate_stream", body)
    connection.getresponse().read(50)
    assert connection.sock is None or connection.sock.close() is None
    connection.close()
    assert ends_early(server, before, 4000)
    assert client.ask(text_input="1 + 1 =", max_tokens=4).ids


# ------------------------------------------------------------------------------------------------ metrics and memory


def test_metrics_count_what_the_answers_say(server: TritonServer, client: Client) -> None:
    before = settled(server)
    answers = [client.ask(messages=chat(question), max_tokens=64, ignore_eos=True) for question in QUESTIONS[:5]]
    statistics = [answer.statistics for answer in answers]
    expected = {
        "rounds": sum(one["rounds"] for one in statistics),
        "spec_decode_num_draft_tokens": sum(one["proposed"] for one in statistics),
        "spec_decode_num_accepted_tokens": sum(one["accepted"] for one in statistics),
        "generation_tokens": 5 * 64,
        "prompt_tokens": sum(one["prompt_tokens"] for one in statistics),
        "prefix_cache_hits": sum(one["cached_tokens"] for one in statistics),
        "tokens_per_round": 5,
        "time_to_first_token_seconds": 5,
    }
    assert expected["spec_decode_num_accepted_tokens"] > 0
    assert until(lambda: {name: value - before[name] for name, value in counted(server).items()} == expected), counted(server)
    page = server.metrics()
    by_position = re.findall(
        r'^quasar_spec_decode_num_accepted_tokens_per_pos_total{.*model="demo".*} (\S+)$', page, re.MULTILINE
    )
    assert sum(map(float, by_position)) == metric(server, "quasar_spec_decode_num_accepted_tokens_total")
    assert "# TYPE quasar_num_requests_waiting gauge" in page
    assert "# TYPE quasar_tokens_per_round histogram" in page
    assert 'quasar_time_to_first_token_seconds_bucket{model="demo",version="1",le="+Inf"}' in page
    assert 'nv_inference_request_success{model="demo",version="1"}' in page  # Triton's own


def test_hundreds_of_requests_take_no_more_memory(server: TritonServer, client: Client) -> None:
    def requests(count: int) -> float:
        for number in range(count):
            client.ask(text_input=f"{number} + 1 =", max_tokens=4 + number % 5, ignore_eos=True, stream=bool(number % 2))
        return sum(held(pid)[1] for pid in stubs(server.pid))

    settled = requests(150)
    assert requests(300) - settled < 4  # MB


# ------------------------------------------------------------------------------------------------ loading


def test_loading_unloading_and_reloading(server: TritonServer, control: Any, library: Model) -> None:
    own = library.generate("1 + 1 =", SamplingParams(max_new_tokens=8)).ids
    assert not server.is_ready("other")
    for _ in range(2):
        control.load_model("other")
        assert server.is_ready("other")
        with Client(server.grpc, "other") as client:
            assert client.ask(text_input="1 + 1 =", max_tokens=8).ids == own
        processes = stubs(server.pid)
        control.unload_model("other")
        assert until(lambda: not server.is_ready("other"))
        assert until(lambda: len(stubs(server.pid)) < len(processes))  # noqa: B023
        assert 'quasar_rounds_total{model="other"' not in server.metrics()
    assert "Stub process" not in server.log.read_text()  # the line about one that crashed


def test_unloading_waits_for_what_is_open(server: TritonServer, control: Any) -> None:
    control.load_model("other")
    with Client(server.grpc, "other") as client:
        responses = client.responses(text_input="1 + 1 =", max_tokens=600, ignore_eos=True, stream=True)
        next(responses)
        control.unload_model("other")
        assert list(responses)[-1].as_numpy("finish_reason")[0, 0] == b"length"  # Triton waits for it
    assert until(lambda: not server.is_ready("other"))


def test_a_bundle_with_a_wrong_hash_is_not_loaded_and_others_stay(server: TritonServer, control: Any, client: Client) -> None:
    with pytest.raises(InferenceServerException) as caught:
        control.load_model("broken")
    message = str(caught.value)
    assert "int8.bin: altered since it was exported (SHA-256 differs); copy it again, or export it again" in message
    assert "Traceback" not in message
    assert not server.is_ready("broken")
    assert server.is_ready("demo")
    assert client.ask(text_input="1 + 1 =", max_tokens=4).ids


def test_a_repaired_bundle_is_loaded(server: TritonServer, control: Any, repository: Path, demo_bundle: Path) -> None:
    shutil.copyfile(demo_bundle / "int8.bin", repository / "broken" / "1" / "bundle" / "int8.bin")
    control.load_model("broken")
    assert server.is_ready("broken")
    control.unload_model("broken")


def test_two_instances_share_the_requests(server: TritonServer, control: Any, demo_bundle: Path, repository: Path) -> None:
    write(demo_bundle, repository, "two", "--instances", "2", "--threads", "1")
    control.load_model("two")
    assert until(lambda: len(stubs(server.pid)) == 1 + 2)  # and `demo`
    before = {process: cpu_seconds(process) for process in stubs(server.pid)}

    def ask(question: str) -> int:
        with Client(server.grpc, "two") as client:
            return len(client.ask(messages=chat(question), max_tokens=40, ignore_eos=True).ids)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, QUESTIONS * 8)) == [40] * 64
    assert sum(cpu_seconds(process) - seconds > 0.05 for process, seconds in before.items()) >= 2
    control.unload_model("two")
