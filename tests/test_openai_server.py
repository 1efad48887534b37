"""Tier 5: the real HTTP server, asked by the clients that people have. Its answers are the library's."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2 as httpx
import openai
import pytest
from served import PATIENCE, Served, events, until

from quasar.runtime import Model, SamplingParams, Text, load
from quasar.runtime.answer import Result
from quasar.runtime.serving.openai.app import APIS
from quasar.runtime.serving.openai.stream import EventStream
from quasar.runtime.serving.request import Part

CHAIN = "prompt-lookup > int8"
QUESTION = "A baker has 24 rolls and sells 6 of them. How many are left?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
LONG = {"messages": MESSAGES, "max_tokens": 400, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Iterator[Served]:
    with Served(demo_bundle, "--chain", CHAIN, "--served-model-name", "demo") as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module")
def model(demo_bundle: Path) -> Iterator[Model]:
    with load(demo_bundle, chain=CHAIN) as made:
        yield made


def ask(model: Model, count: int = 40, **params: Any) -> Result:
    return model.generate(messages=MESSAGES, params=SamplingParams(max_new_tokens=count, **params))


def test_an_unchanged_client_gets_the_library_s_answer(client: openai.OpenAI, model: Model) -> None:
    done = client.chat.completions.create(model="gpt-x", messages=MESSAGES, max_completion_tokens=40)
    wanted = ask(model)
    choice = done.choices[0]
    assert (choice.message.content, choice.finish_reason, done.model) == (wanted.text, wanted.finish_reason, "gpt-x")
    assert done.usage is not None
    assert (done.usage.completion_tokens, done.usage.prompt_tokens) == (len(wanted.ids), wanted.statistics.prompt_tokens)
    again = client.chat.completions.create(model="gpt-x", messages=MESSAGES, max_completion_tokens=40)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == wanted.statistics.prompt_tokens - 1


def test_a_stream_is_the_same_text_in_pieces(client: openai.OpenAI, model: Model) -> None:
    with client.chat.completions.stream(model="demo", messages=MESSAGES, stream_options={"include_usage": True}) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        done = stream.get_final_completion()
    wanted = ask(model, 450)
    assert wanted.finish_reason == "stop"
    assert "".join(pieces) == done.choices[0].message.content == wanted.text
    assert len(pieces) > 3
    assert done.usage is not None
    assert done.usage.completion_tokens == len(wanted.ids)


@pytest.mark.parametrize("fields", [{"temperature": 1.0, "seed": 11, "top_k": 40, "min_p": 0.02}, {"stop": [" is", "."]}])
def test_options_mean_what_they_mean_in_the_library(client: openai.OpenAI, model: Model, fields: dict[str, Any]) -> None:
    extra = {name: fields[name] for name in ("top_k", "min_p") if name in fields}
    named = {name: value for name, value in fields.items() if name not in extra}
    done = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=40, extra_body=extra, **named)
    wanted = ask(model, **fields)
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (wanted.text, wanted.finish_reason)


def test_several_answers_have_seeds_of_their_own(client: openai.OpenAI, model: Model) -> None:
    done = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=30, n=3, seed=5, temperature=1.0)
    wanted = [ask(model, 30, temperature=1.0, seed=5 + i).text for i in range(3)]
    assert [choice.message.content for choice in done.choices] == wanted
    assert len(set(wanted)) == 3


def test_log_probabilities_are_the_library_s(client: openai.OpenAI, model: Model) -> None:
    done = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=12, logprobs=True, top_logprobs=3)
    wanted = ask(model, 12, logprobs=3).logprobs
    assert wanted is not None
    assert done.choices[0].logprobs is not None
    said = done.choices[0].logprobs.content
    assert said is not None
    assert [one.logprob for one in said] == pytest.approx([one.logprob for one in wanted], abs=1e-5)
    assert [[top.logprob for top in one.top_logprobs] for one in said] == [
        pytest.approx([value for _, value in one.top], abs=1e-5) for one in wanted
    ]
    assert "".join(one.token for one in said).strip() == ask(model, 12).text.strip()


def test_bias_and_min_tokens_change_what_is_chosen(server: Served, model: Model) -> None:
    plain = server.post("/v1/completions", {"prompt": "A baker", "max_tokens": 1, "logprobs": 1}).json()["choices"][0]
    first = model.generate("A baker", SamplingParams(max_new_tokens=1)).ids[0]
    biased = {"prompt": "A baker", "max_tokens": 1, "logit_bias": {str(first): -100}}
    assert server.post("/v1/completions", biased).json()["choices"][0]["text"] != plain["text"]
    ends = server.post("/v1/chat/completions", {"messages": MESSAGES}).json()["usage"]["completion_tokens"]
    longer = {"messages": MESSAGES, "min_tokens": ends + 20, "max_tokens": ends + 20}
    assert server.post("/v1/chat/completions", longer).json()["usage"]["completion_tokens"] == ends + 20


def test_completions_take_text_and_ids_and_lists_of_both(client: openai.OpenAI, model: Model) -> None:
    ids = model.tokenize("A baker has")
    wanted = model.generate("A baker has", SamplingParams(max_new_tokens=9)).text
    for prompt in ("A baker has", ids, ["A baker has", "A baker has"], [ids, ids]):
        done = client.completions.create(model="demo", prompt=prompt, max_tokens=9)  # type: ignore[arg-type]
        many = isinstance(prompt, list) and not isinstance(prompt[0], int)
        assert [choice.text.strip() for choice in done.choices] == [wanted.strip()] * (2 if many else 1)
    echoed = client.completions.create(model="demo", prompt="A baker has", max_tokens=9, echo=True)
    assert echoed.choices[0].text == "A baker has" + wanted


@pytest.mark.parametrize("count", [0, 5])
def test_an_echo_has_the_log_probabilities_of_the_prompt(server: Served, model: Model, count: int) -> None:
    ids = model.tokenize("A baker has 24 rolls")
    body = {"prompt": [ids, ids[:1]], "max_tokens": count, "echo": True, "logprobs": 2}
    first, single = server.post("/v1/completions", body).json()["choices"]
    wanted = model.score([Text(ids)], 2)[0]
    said = first["logprobs"]
    assert said["token_logprobs"][0] is said["top_logprobs"][0] is None
    assert said["token_logprobs"][1 : len(ids)] == pytest.approx([one.logprob for one in wanted], abs=1e-5)
    assert all(len(top) == 2 for top in said["top_logprobs"][1:])
    assert len(said["tokens"]) == len(ids) + count
    assert "".join(said["tokens"][: len(ids)]) == "A baker has 24 rolls"
    assert said["text_offset"][:3] == [0, len(said["tokens"][0]), len("".join(said["tokens"][:2]))]
    assert first["text"].startswith("A baker has 24 rolls")
    assert len(single["logprobs"]["tokens"]) == 1 + count
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 0}).json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize("how", ["off", 3, CHAIN, "suffix > int8", "int4 > int8", {"chain": "int4 > int8", "draft_length": 2}])
def test_tokens_do_not_depend_on_speculation(server: Served, model: Model, how: Any) -> None:
    asked = {**how, "statistics": True} if isinstance(how, dict) else how
    done = server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 40, "speculation": asked}).json()
    assert done["choices"][0]["message"]["content"] == ask(model).text
    assert ("speculation" in done) == isinstance(how, dict)
    if isinstance(how, dict):
        report = done["speculation"][0]
        assert [level["engine"] for level in report["levels"]] == ["int4", "int8"]
        assert report["tokens_by_origin"]["int4"] > 0
        assert report["proposed"] >= report["accepted"] > 0


def test_a_stream_says_who_drafted_each_token(server: Served) -> None:
    how = {"chain": "int4 > int8", "draft_length": 3, "statistics": True}
    asked = {"messages": MESSAGES, "max_tokens": 40, "stream": True, "speculation": how}
    with server.http.stream("POST", "/v1/chat/completions", json=asked) as response:
        said = [json.loads(data) for data in events(response) if data != "[DONE]"]
    drafted = [one["speculation"] for one in said if "speculation" in one and "tokens" in one["speculation"]]
    text = "".join(one["choices"][0]["delta"].get("content") or "" for one in said)
    assert "".join(token for one in drafted for token in one["tokens"]) == text
    origins = [origin for one in drafted for origin in one["origins"]]
    assert set(origins) == {"", "int4"}
    assert said[-1]["speculation"]["tokens_by_origin"]["int4"] == origins.count("int4")


def test_the_responses_api_answers_without_a_memory(client: openai.OpenAI, model: Model) -> None:
    done = client.responses.create(model="demo", input=QUESTION, max_output_tokens=40)
    assert done.output_text == ask(model).text
    assert done.status == "incomplete"
    with client.responses.stream(model="demo", input=MESSAGES) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == final.output_text == ask(model, 450).text
    assert final.status == "completed"
    with pytest.raises(openai.BadRequestError, match="nothing is stored here"):
        client.responses.create(model="demo", input="a", previous_response_id="resp_1")


def test_the_messages_api_answers_anthropic_s_client(server: Served, model: Model) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=PATIENCE) as asker:
        done = asker.messages.create(model="demo", max_tokens=40, messages=MESSAGES)
        with asker.messages.stream(model="demo", max_tokens=40, messages=MESSAGES) as stream:
            pieces = list(stream.text_stream)
            final = stream.get_final_message()
        with pytest.raises(anthropic.BadRequestError, match="temperature"):
            asker.messages.create(model="demo", max_tokens=40, messages=MESSAGES, extra_body={"temperature": -1})
    wanted = ask(model)
    block = done.content[0]
    assert block.type == "text"
    assert block.text == "".join(pieces) == wanted.text
    assert done.stop_reason == final.stop_reason == ("max_tokens" if wanted.finish_reason == "length" else "end_turn")
    assert final.usage.output_tokens == len(wanted.ids)


def test_tokens_and_text_can_be_had(server: Served, model: Model) -> None:
    ids = server.post("/tokenize", {"prompt": "A baker has"}).json()
    assert ids["tokens"] == model.tokenize("A baker has")
    assert (ids["count"], ids["max_model_len"]) == (len(ids["tokens"]), model.max_length)
    assert server.post("/tokenize", {"messages": MESSAGES}).json()["tokens"] == model.read(messages=MESSAGES).ids
    assert server.post("/detokenize", {"tokens": ids["tokens"]}).json()["prompt"] == "A baker has"
    assert server.post("/detokenize", {"tokens": [-1]}).status_code == 400


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "a" * 20000}]}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"n": 1000}, "n"),
        ({"seed": 1 << 80}, "seed"),
        ({"stop": ["a"] * 99}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999999": 1}}, "logit_bias"),
        ({"logit_bias": {"3": 1000}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"speculation": "int8 > float"}, "speculation"),
        ({"speculation": "int2 > int8"}, "speculation"),
        ({"speculation": 1000}, "speculation"),
        ({"speculation": {"length": 3}}, "speculation"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"temprature": 1}, "temprature"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"model": 7}, "model"),
    ],
)
def test_what_is_wrong_is_named(server: Served, change: dict[str, Any], param: str) -> None:
    said = server.post("/v1/chat/completions", {"messages": MESSAGES, **change})
    error = said.json()["error"]
    assert (said.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert "\n" not in error["message"]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100000, b'{"messages": NaN}'])
def test_what_is_no_json_object_is_refused(server: Served, raw: bytes) -> None:
    said = server.http.post("/v1/chat/completions", content=raw)
    assert said.status_code == 400
    assert said.json()["error"]["message"]


def test_a_large_body_is_refused(server: Served) -> None:
    said = server.http.post("/v1/chat/completions", content=b" " * (10 << 20))
    assert (said.status_code, said.json()["error"]["type"]) == (413, "invalid_request_error")
    assert server.http.get("/health").status_code == 200


def test_unknown_paths_and_methods_get_json(server: Served) -> None:
    for said, status in ((server.http.get("/v1/embeddings"), 404), (server.http.get("/v1/chat/completions"), 405)):
        assert said.status_code == status
        assert said.json()["error"]["message"]


def test_a_client_that_goes_away_frees_its_place(server: Served) -> None:
    with server.http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as response:
        said = events(response)  # the stream is closed with it
        next(said)
        assert until(lambda: server.metric("quasar_num_requests_running") == 1)
    assert until(lambda: server.metric("quasar_num_requests_running") == 0)
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/chat/completions", json=LONG, timeout=0.05)
    before = server.metric("quasar_generation_tokens_total")
    assert until(lambda: server.metric("quasar_num_requests_running") == 0)
    assert server.metric("quasar_generation_tokens_total") - before < 400


@pytest.mark.parametrize("prompt", ["completions", "chat/completions", "completions, scored"])
def test_a_prompt_that_is_too_long_has_its_own_code(server: Served, prompt: str) -> None:
    words = "word " * 9000
    path, _, scored = prompt.partition(", ")
    body: dict[str, Any] = {"messages": [{"role": "user", "content": words}]} if "chat" in path else {"prompt": words}
    if scored:
        body |= {"echo": True, "logprobs": 0, "max_tokens": 0}
    error = server.post(f"/v1/{path}", body).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages" if "chat" in path else "prompt")


def test_a_stream_that_has_nothing_to_say_carries_comments() -> None:
    """As of a prompt that is being read for long, with a patience of 20 ms in place of 10 seconds."""

    class Writer:
        def take(self, number: int, part: Part) -> Iterator[dict[str, Any]]:
            yield {"text": part.text}

        def end(self) -> Iterator[dict[str, Any]]:
            return iter(())

        def whole(self) -> dict[str, Any]:
            return {}

    async def slow() -> AsyncIterator[tuple[int, Part]]:
        for text in ("first", "second"):
            await asyncio.sleep(0.1)
            yield 0, Part(text, [1])

    async def said() -> list[Any]:
        stream = EventStream(slow(), Writer(), APIS["/v1/completions"], 0.02)  # type: ignore[arg-type]
        return [piece async for piece in stream.body_iterator]

    pieces = asyncio.run(said())
    silent = [piece for piece in pieces if piece.startswith(b":")]
    assert len(silent) >= 4
    assert [piece for piece in pieces if piece not in silent] == [
        b'data: {"text":"first"}\n\n',
        b'data: {"text":"second"}\n\n',
        b"data: [DONE]\n\n",
    ]
    assert pieces[0] in silent
    assert silent[0].endswith(b"\n\n")


def test_metrics_have_the_names_that_dashboards_know(server: Served) -> None:
    before = server.metric("quasar_spec_decode_num_draft_tokens_total")
    server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 40, "speculation": 3})
    assert until(lambda: server.metric("quasar_spec_decode_num_draft_tokens_total") > before)
    accepted = server.metric("quasar_spec_decode_num_accepted_tokens_total")
    assert server.metric("quasar_spec_decode_num_accepted_tokens_per_pos_total") == accepted
    for name in ("quasar_kv_cache_usage_perc", "quasar_num_requests_waiting", "quasar_prompt_tokens_total"):
        assert server.metric(name) >= 0
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time"):
        assert server.metric(f"quasar_{name}_seconds_count") > 0


def test_answers_at_the_same_time_do_not_mix(server: Served, model: Model) -> None:
    prompts = [f"A shop has {n} apples and sells {n - 3} of them. How many are left?" for n in range(10, 26)]
    wanted = [
        model.generate(messages=[{"role": "user", "content": one}], params=SamplingParams(max_new_tokens=30)) for one in prompts
    ]
    said: dict[int, str] = {}

    def ask_one(number: int) -> None:
        body = {"messages": [{"role": "user", "content": prompts[number]}], "max_tokens": 30}
        said[number] = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask_one, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [said[number] for number in range(len(prompts))] == [one.text for one in wanted]


def test_keys_queues_and_names_are_guarded(demo_bundle: Path) -> None:
    options = ("--api-key", "s3cret", "--strict-model", "--max-queue", "7", "--sequences", "1", "--max-new-tokens", "450")
    with Served(demo_bundle, "--chain", CHAIN, "--served-model-name", "demo", *options) as server:
        assert server.http.get("/health").status_code == 200
        for key in ("x", "wrong", "s3cre", "s3cretx", "ü"):
            said = server.http.post("/v1/chat/completions", json=LONG, headers=[(b"authorization", f"Bearer {key}".encode())])
            assert (said.status_code, said.json()["error"]["code"]) == (401, "invalid_api_key")
        assert server.http.get("/metrics").status_code == 401
        key = {"Authorization": "Bearer s3cret"}
        said = server.post("/v1/chat/completions", {**LONG, "model": "gpt-5"}, **key)
        assert (said.status_code, said.json()["error"]["code"]) == (404, "model_not_found")
        said = server.post("/v1/chat/completions", {**LONG, "model": "demo", "max_tokens": 460}, **key)
        assert (said.status_code, said.json()["error"]["param"]) == (400, "max_tokens")
        body = {**LONG, "model": "demo"}
        many = {**body, "n": 8, "stream": True}  # one is worked on, and seven wait
        with server.http.stream("POST", "/v1/chat/completions", json=many, headers=key) as response:
            pieces = events(response)
            next(pieces)
            said = server.post("/v1/chat/completions", body, **key)
            assert (said.status_code, said.headers.get("retry-after")) == (503, "1")
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key="s3cret", max_retries=8) as client:
                response.close()  # the place is free by the time of a retry
                assert client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=3).choices


def test_a_signal_lets_open_answers_end(demo_bundle: Path) -> None:
    with Served(demo_bundle, "--chain", CHAIN, "--sequences", "1", "--drain-seconds", "300") as server:
        with server.http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True, "n": 3}) as response:
            said = events(response)
            next(said)
            server.process.send_signal(signal.SIGTERM)
            with httpx.Client(base_url=server.url) as other:
                assert until(lambda: other.get("/health").status_code == 503)
                refused = other.post("/v1/chat/completions", json=LONG)
                assert (refused.status_code, refused.json()["error"]["type"]) == (503, "overloaded_error")
            assert list(said)[-1] == "[DONE]"
        assert server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--chain", "int2 > int8"], 2, "no engine 'int2'"),
        (["--sequences", "999"], 2, "999 sequences, and it was exported for"),
        (["--max-queue", "-1"], 2, "--max-queue -1: give 0 or more"),
        (["--api-key", ""], 2, "--api-key: it is empty"),
        (["--host", "256.0.0.1"], 1, r"cannot listen on 256\.0\.0\.1:0: "),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(demo_bundle: Path, options: list[str], code: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"exit {code}: quasar-serve: .*{message}") as error, Served(demo_bundle, *options):
        pass
    assert "Traceback" not in str(error.value)
