"""`/tokenize` and `/detokenize`"""

from __future__ import annotations

from typing import Any

from quasar.engines.errors import UsageError
from quasar.runtime.model import Model
from quasar.runtime.serving.openai.body import Body
from quasar.runtime.serving.openai.conversation import Conversation, read_messages, read_tools

TOKENIZE = ("prompt", "content", "messages", "tools", "model", "chat_template_kwargs", "add_special_tokens", "add_special")


def tokenize(values: dict[str, Any], model: Model) -> dict[str, Any]:
    """Token ids of text or messages, under the names of vLLM (`prompt`) and llama.cpp (`content`).

    Raises:
        RequestError: there is neither, or it does not fit.
    """
    body = Body(values)
    body.check_names(TOKENIZE)
    if body.has("messages"):
        options = body.mapping("chat_template_kwargs")
        ids = Conversation.of(model, read_messages(body, "messages"), read_tools(body), options, "messages").prompt.ids
    else:
        name = "prompt" if body.has("prompt") else "content"
        if not body.has(name):
            body.refuse("prompt", "give text, or messages")
        special = body.flag("add_special_tokens", body.flag("add_special", True))
        try:
            ids = model.tokenizer.encode(body.text(name), special)
        except UsageError as error:
            body.refuse(name, str(error))
    return {"count": len(ids), "max_model_len": model.max_length, "tokens": ids}


def detokenize(values: dict[str, Any], model: Model) -> dict[str, Any]:
    """The text of token ids.

    Raises:
        RequestError: they are none.
    """
    body = Body(values)
    body.check_names(("tokens", "model"))
    ids = body.get("tokens")
    if not isinstance(ids, list) or any(type(token) is not int or not 0 <= token < model.vocab_size for token in ids):
        body.refuse("tokens", f"give a list of token ids of 0 to {model.vocab_size - 1}")
    text = model.tokenizer.decode(ids)
    return {"prompt": text, "content": text}
