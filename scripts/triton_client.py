"""Asking a Triton server over gRPC streaming, for tests, demonstrations and measurements. Needs the extra `triton`.

usage: triton_client.py ADDRESS MODEL QUESTION
"""

from __future__ import annotations

import json
import queue
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

TYPES = {"INT64": np.int64, "INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32, "BOOL": np.bool_, "BYTES": np.object_}
KINDS = {
    "max_tokens": "INT32",
    "top_k": "INT32",
    "seed": "UINT64",
    "token_ids": "INT64",
    **dict.fromkeys(
        ("text_input", "messages", "stop_words", "guided_decoding_guide_type", "guided_decoding_guide", "guided_decoding_after"),
        "BYTES",
    ),
    **dict.fromkeys(("stream", "ignore_eos", "exclude_input_in_output", "return_num_input_tokens"), "BOOL"),
    "return_num_output_tokens": "BOOL",
    "guided_decoding_after": "BYTES",
}


@dataclass
class Answer:
    """What came back.

    Attributes:
        stamps: seconds from the request to each response.
    """

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    statistics: dict[str, Any] = field(default_factory=dict)
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    stamps: list[float] = field(default_factory=list)


class Client:
    """One gRPC stream. Use it as a context manager."""

    def __init__(self, address: str, model: str) -> None:
        self._model = model
        self._client = grpc.InferenceServerClient(address)
        self._responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: self._responses.put((result, error)))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self, cancel: bool = False) -> None:
        """End the stream; with `cancel`, drop what is still to come."""
        self._client.stop_stream(cancel_requests=cancel)
        self._client.close()

    def responses(self, **values: Any) -> Iterator[Any]:
        """Ask, and give the responses as they come; raises what the server says instead."""
        self._client.async_stream_infer(self._model, tensors(values))
        while True:
            result, error = self._responses.get(timeout=120)
            if error is not None:
                raise error
            if result.as_numpy("text_output") is not None:
                yield result
            if result.get_response().parameters["triton_final_response"].bool_param:
                return

    def ask(self, **values: Any) -> Answer:
        """Ask, and put the responses together."""
        answer = Answer()
        begin = time.perf_counter()
        for result in self.responses(**values):
            answer.stamps.append(time.perf_counter() - begin)
            answer.text += result.as_numpy("text_output")[0, 0].decode()
            answer.ids += result.as_numpy("token_ids")[0].tolist()
            for name in ("num_input_tokens", "num_output_tokens"):
                if (found := result.as_numpy(name)) is not None:
                    setattr(answer, name, int(found[0, 0]) + (answer.num_output_tokens if "output" in name else 0))
            if (reason := result.as_numpy("finish_reason")) is not None:
                answer.finish_reason = reason[0, 0].decode()
                answer.statistics = json.loads(result.as_numpy("statistics")[0, 0])
        return answer


def tensors(values: dict[str, Any]) -> list[Any]:
    """Inputs of the shape [1, N]; text as UTF-8."""
    made = []
    for name, value in values.items():
        kind = KINDS.get(name, "FP32")
        many = value if isinstance(value, (list, tuple)) else [value]
        if kind == "BYTES":
            many = [text.encode() if isinstance(text, str) else text for text in many]
        array = np.array([many], dtype=TYPES[kind])
        made.append(grpc.InferInput(name, list(array.shape), kind))
        made[-1].set_data_from_numpy(array)
    return made


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    with Client(sys.argv[1], sys.argv[2]) as client:
        question = json.dumps([{"role": "user", "content": sys.argv[3]}])
        for result in client.responses(messages=question, max_tokens=80, stream=True):
            print(result.as_numpy("text_output")[0, 0].decode(), end="", flush=True)
    print()


if __name__ == "__main__":
    main()
