"""The tensors of a request and of its responses: names, types and shapes.

Names and shapes are those that Triton's OpenAI frontend sends to any model whose backend is not vLLM, and TensorRT-LLM's clients
with it: every tensor is [1, N], a batch of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["STRING", "BOOL", "INT32", "INT64", "UINT64", "FP32"]

ANY = -1
"""Length of a tensor that may hold any number of values."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor.

    Attributes:
        name: in requests and responses.
        kind: Triton's data type, without its prefix.
        length: values in it, beside the batch dimension of 1; `ANY` for any number.
        meaning: for people.
    """

    name: str
    kind: Kind
    length: int
    meaning: str


INPUTS = (
    TensorSpec("text_input", "STRING", 1, "text that the answer continues, as it is: no chat template"),
    TensorSpec("messages", "STRING", 1, 'JSON: [{"role": "user", "content": "..."}], through the chat template'),
    TensorSpec("tools", "STRING", 1, 'JSON: functions that the model may call, [{"type": "function", ...}]; with messages'),
    TensorSpec("chat_template_kwargs", "STRING", 1, 'JSON: variables of the template, {"enable_thinking": false}; with messages'),
    TensorSpec("token_ids", "INT64", ANY, "the prompt as token ids"),
    TensorSpec("stream", "BOOL", 1, "responses as the answer grows instead of one for the whole answer (false)"),
    TensorSpec("max_tokens", "INT32", 1, "tokens to generate at the most (256)"),
    TensorSpec("temperature", "FP32", 1, "0 takes the most likely token each time (the bundle's, else 0)"),
    TensorSpec("top_k", "INT32", 1, "sample from the k most likely tokens; 0 for all (the bundle's, else 0)"),
    TensorSpec("top_p", "FP32", 1, "sample from the smallest set of tokens with this probability (the bundle's, else 1)"),
    TensorSpec("min_p", "FP32", 1, "sample from tokens with this share of the best one's probability (the bundle's, else 0)"),
    TensorSpec("seed", "UINT64", 1, "of the random numbers (another one each time)"),
    TensorSpec("repetition_penalty", "FP32", 1, "on tokens of prompt and answer, 1 for none (the bundle's, else 1)"),
    TensorSpec("frequency_penalty", "FP32", 1, "-2 to 2, on tokens of the answer, once per occurrence (0)"),
    TensorSpec("presence_penalty", "FP32", 1, "-2 to 2, on tokens of the answer (0)"),
    TensorSpec("stop_words", "STRING", ANY, "strings that end the answer; it is cut before them"),
    TensorSpec("ignore_eos", "BOOL", 1, "go on past the model's end tokens (false)"),
    TensorSpec("exclude_input_in_output", "BOOL", 1, "false puts the prompt's text before the answer (true)"),
    TensorSpec("return_num_input_tokens", "BOOL", 1, "give num_input_tokens (false)"),
    TensorSpec("return_num_output_tokens", "BOOL", 1, "give num_output_tokens (false)"),
    TensorSpec("guided_decoding_guide_type", "STRING", 1, "form: json, json_schema, regex, ebnf_grammar, lark (any)"),
    TensorSpec("guided_decoding_guide", "STRING", 1, "the schema as JSON, the expression or the grammar; none for json"),
    TensorSpec("guided_decoding_after", "STRING", 1, "text after which the form begins, such as </think> (none)"),
)

OUTPUTS = (
    TensorSpec("text_output", "STRING", 1, "the text since the last response"),
    TensorSpec("token_ids", "INT64", ANY, "the tokens since the last response"),
    TensorSpec("finish_reason", "STRING", 1, "stop or length; in the last response only"),
    TensorSpec("statistics", "STRING", 1, "JSON, as of quasar-generate --json; in the last response only"),
    TensorSpec("num_input_tokens", "INT32", 1, "tokens of the prompt, where asked for"),
    TensorSpec("num_output_tokens", "INT32", 1, "tokens of this response, where asked for"),
)
