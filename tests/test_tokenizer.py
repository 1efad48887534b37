"""The tokenizer of a bundle: one BOS, special tokens, ids that the model has no row for, broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tokenizers import FILES, SPECIAL, opened, with_bos

import quasar.exporter
from quasar.engines.errors import BundleError, UsageError
from quasar.runtime.chat import Chat
from quasar.runtime.tokenizer import Tokenizer

VOCAB_SIZE = 4096
FOLDER = Path(str(quasar.exporter.__file__)).parent / "demo"
TOKENIZER = Tokenizer(FOLDER, VOCAB_SIZE)
QUESTION = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("kind", FILES)
def test_a_text_gets_one_bos_whether_it_begins_with_one_or_not(tmp_path: Path, kind: str) -> None:
    tokenizer = opened(with_bos(FILES[kind]), tmp_path)
    bos = tokenizer.token_id("<s>")
    for text in ("a has", "<s>a has", " <|end|>a"):
        ids = tokenizer.encode(text)
        assert ids[0] == bos
        assert ids.count(bos) == 1
    assert tokenizer.encode("<s>a has") == [bos, *tokenizer.encode("<s>a has", special_tokens=False)[1:]]
    assert tokenizer.encode("a<s>").count(bos) == 2  # the second is the text's own
    assert tokenizer.encode("") == [bos]


@pytest.mark.parametrize("kind", FILES)
def test_a_tokenizer_that_puts_no_bos_leaves_text_as_it_is(tmp_path: Path, kind: str) -> None:
    tokenizer = opened(FILES[kind], tmp_path)
    bos = tokenizer.token_id("<s>")
    assert bos not in tokenizer.encode("a has")
    assert tokenizer.encode("<s><s>a").count(bos) == 2


@pytest.mark.parametrize("kind", FILES)
def test_a_rendered_chat_has_the_bos_of_its_template_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}<|end|>")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<s>"}}')
    tokenizer = opened(with_bos(FILES[kind]), tmp_path)
    chat = Chat([QUESTION])
    assert tokenizer.render(chat) == "<s>Hi<|end|>"
    assert tokenizer.encode_chat(chat) == tokenizer.encode(tokenizer.render(chat))  # as servers send it, rendered before


def test_only_special_tokens_have_an_id_that_stops() -> None:
    assert TOKENIZER.special_id("<|im_end|>") == TOKENIZER.token_id("<|im_end|>")
    assert TOKENIZER.special_id("a") is None
    assert TOKENIZER.special_id("no token") is None


def test_special_tokens_and_ids_of_no_token_have_no_text(tmp_path: Path) -> None:
    tokenizer = opened(FILES["byte-fallback"], tmp_path)
    size = len(tokenizer.vocabulary)
    assert not any(
        tokenizer.has_text(token) for token in (*map(tokenizer.token_id, SPECIAL), size, size + 5) if token is not None
    )
    assert tokenizer.has_text(tokenizer.vocabulary["[TOOL]"])
    assert tokenizer.decode([tokenizer.vocabulary["a"], size, size + 5]) == "a"


def test_a_tokenizer_larger_than_the_model_loads_and_names_the_token_that_is_beyond_it(tmp_path: Path) -> None:
    size = FILES["byte-level"].get_vocab_size()
    opened(FILES["byte-level"], tmp_path)
    tokenizer = Tokenizer(tmp_path, size - 1)
    assert tokenizer.encode("a has<|end|>")
    with pytest.raises(UsageError, match=rf"the text has '\[TOOL\]', token {size - 1}, and the model knows {size - 1}; leave it"):
        tokenizer.encode("a [TOOL]")


@pytest.mark.parametrize("content", [None, "", "{}", "\ud83d"])
def test_a_broken_tokenizer_file_is_a_bundle_error_that_names_it(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path, VOCAB_SIZE)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\ud83d"])
def test_a_broken_configuration_is_a_bundle_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match=r"tokenizer_config\.json: cannot be read"):
        opened(FILES["byte-level"], tmp_path)


def test_chat_messages_end_with_the_turn_of_the_assistant() -> None:
    rendered = "<|im_start|>user\nHi<|im_end|>\n"
    assert TOKENIZER.render(Chat([QUESTION])) == rendered + "<|im_start|>assistant\n"
    assert TOKENIZER.encode_chat(Chat([QUESTION])) == TOKENIZER.encode(rendered + "<|im_start|>assistant\n")
    answered = Chat([QUESTION, {"role": "assistant", "content": "Yes"}])
    assert TOKENIZER.encode_chat(answered) == TOKENIZER.encode(rendered + "<|im_start|>assistant\nYes<|im_end|>\n")


@pytest.mark.parametrize("text", ["\ud800", "caf\udce9"])
def test_text_that_is_not_unicode_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        TOKENIZER.encode(text)
