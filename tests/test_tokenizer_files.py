"""The tokenizer of a bundle is what transformers loads from all files of a checkpoint, and no code of it is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from models import make_checkpoint
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as File
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

from quasar.engines.errors import UsageError
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint
from quasar.exporter.model.tokenizer import open_tokenizer, stop_token_ids_of, write_tokenizer
from quasar.runtime.chat import Chat
from quasar.runtime.tokenizer import Tokenizer, encode_messages

TEXT = [
    "Tom has 3 boxes of 8 pens.",
    " He gives  away five; how many are left?",
    "Où est le café? 漢字 😀",
    "def f(x):\n    return x",
]
SAMPLES = [*TEXT, "<|im_start|>user\nHi<|im_end|>\nnext", "a <s>b</s> c", "TOM [TOOL] tom", ""]
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def added(content: str, **options: bool) -> dict[str, Any]:
    """A token as tokenizer_config.json holds it."""
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), False)
    return {"content": content, **flags, **options}


def byte_level(normalizer: normalizers.Normalizer | None = None) -> File:
    file = File(BPE())
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.decoder = ByteLevel()
    if normalizer is not None:
        file.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    file.train_from_iterator(TEXT * 4, BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    return file


def sentencepiece_model(folder: Path) -> Path:
    """`tokenizer.model` with byte fallback, and two symbols of its users among its pieces."""
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text("\n".join(TEXT * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=380,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["[unused9]", "[unused10]"],
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    (folder / "text.txt").unlink()
    return folder / "tokenizer.model"


class Case:
    """A checkpoint with tokenizer files, and its tokenizer as a bundle has it."""

    def __init__(self, folder: Path, files: Mapping[str, Any], family: str = "qwen3-tied", **config: Any) -> None:
        make_checkpoint(folder / "model", family, vocab_size=512, **config)
        for name, content in files.items():
            path = folder / "model" / name
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, File):
                content.save(str(path))
            elif isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        self.folder = folder / "model"
        self.checkpoint: Checkpoint = open_checkpoint(str(self.folder))
        write_tokenizer(self.checkpoint, folder / "tokenizer")
        self.written = folder / "tokenizer"
        self.tokenizer: Tokenizer = open_tokenizer(self.checkpoint, self.written)

    def is_transformers(self) -> None:
        """Ids and texts are those of transformers."""
        loaded = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        for text in SAMPLES:
            ids = loaded(text).input_ids
            assert self.tokenizer.encode(text) == ids
            assert self.tokenizer.decode(ids) == loaded.decode(ids, skip_special_tokens=True)

    @property
    def stops(self) -> list[int | None]:
        return list(stop_token_ids_of(self.checkpoint, self.tokenizer))


def test_a_token_that_only_the_configuration_calls_special_is_left_out_of_text(tmp_path: Path) -> None:
    file = byte_level()
    file.add_tokens([AddedToken("<|im_start|>", special=False), AddedToken("<|im_end|>", special=False)])
    end = file.token_to_id("<|im_end|>")
    special = {str(end): added("<|im_end|>", special=True), str(end - 1): added("<|im_start|>", special=True)}
    case = Case(tmp_path, {"tokenizer.json": file, "tokenizer_config.json": {"added_tokens_decoder": special}})
    case.is_transformers()
    assert case.tokenizer.decode(case.tokenizer.encode("so<|im_end|>")) == "so"


def test_tokens_that_only_the_configuration_adds_are_one_id_and_can_end_an_answer(tmp_path: Path) -> None:
    file = byte_level()
    size = file.get_vocab_size()
    config = {"added_tokens_decoder": {str(size): added("<|im_end|>", special=True)}, "eos_token": "<|im_end|>"}
    case = Case(tmp_path, {"tokenizer.json": file, "tokenizer_config.json": config})
    case.is_transformers()
    assert case.tokenizer.encode("so<|im_end|>")[-1] == size
    assert size in case.stops


def test_tokens_of_added_tokens_json_are_read(tmp_path: Path) -> None:
    file = byte_level()
    files = {"vocab.json": json.loads(file.to_str())["model"]["vocab"], "merges.txt": merges_of(file)}
    files |= {"added_tokens.json": {"[TOOL]": len(files["vocab.json"])}}
    files |= {"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer"}}
    case = Case(tmp_path, files)
    case.is_transformers()
    assert case.tokenizer.encode("[TOOL]") == [len(files["vocab.json"])]


def merges_of(file: File) -> str:
    return "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in json.loads(file.to_str())["model"]["merges"])


def test_bos_that_only_the_map_of_special_tokens_names_stands_in_prompts(tmp_path: Path) -> None:
    file = byte_level()
    file.add_special_tokens(["<s>"])
    files = {"tokenizer.json": file, "special_tokens_map.json": {"bos_token": "<s>"}, "tokenizer_config.json": {}}
    case = Case(tmp_path, files | {"chat_template.jinja": "{{ bos_token }}{{ messages[0].content }}"})
    case.is_transformers()
    assert case.tokenizer.render(Chat([{"role": "user", "content": "Hi"}])) == "<s>Hi"


def test_special_tokens_are_matched_as_the_configuration_says_and_not_as_the_file_does(tmp_path: Path) -> None:
    file = byte_level(normalizers.Prepend("_"))  # in normalized text the token begins with what is put before a text
    file.add_tokens([AddedToken("[TOOL]", special=True, normalized=True)])
    tool = file.token_to_id("[TOOL]")
    assert tool not in file.encode("call [TOOL] now").ids
    config = {"added_tokens_decoder": {str(tool): added("[TOOL]", special=True)}}
    case = Case(tmp_path, {"tokenizer.json": file, "tokenizer_config.json": config})
    case.is_transformers()
    assert tool in case.tokenizer.encode("call [TOOL] now")


def test_ends_are_the_union_of_all_that_is_named_and_of_what_ends_a_turn(tmp_path: Path) -> None:
    file = byte_level()
    file.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|base|>", "<|generation|>"])
    ids = {name: file.token_to_id(name) for name in ("</s>", "<|im_end|>", "<|base|>", "<|generation|>")}
    case = Case(
        tmp_path,
        {
            "tokenizer.json": file,
            "tokenizer_config.json": {"eos_token": "</s>", "chat_template": CHATML},
            "generation_config.json": {"eos_token_id": [ids["<|generation|>"]]},
        },
        eos_token_id=ids["<|base|>"],
    )
    assert sorted(case.stops) == sorted(ids.values())


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [True, -1, 512, 1.5, "</s>", [2, True]])
def test_an_end_that_is_no_token_is_refused_with_its_file(tmp_path: Path, file: str, value: Any) -> None:
    case = Case(tmp_path, {"tokenizer.json": byte_level()})
    path = case.folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | {"eos_token_id": value}))
    with pytest.raises(UsageError, match=r"eos_token_id .* is not a token id of the model|config.json: "):
        stop_token_ids_of(open_checkpoint(str(case.folder)), case.tokenizer)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_sentencepiece_model_alone_is_converted_as_transformers_does(tmp_path: Path, wanted: bool) -> None:
    model = sentencepiece_model(tmp_path / "pieces")
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    files = {"tokenizer.model": model, "tokenizer_config.json": config | {"add_bos_token": wanted}}
    case = Case(tmp_path, files, "llama2")
    case.is_transformers()
    assert (case.tokenizer.encode("Tom has")[0] == 1) == wanted


def test_openpangu_is_exported_from_its_pieces_without_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = sentencepiece_model(tmp_path / "pieces")
    processor = sentencepiece.SentencePieceProcessor(str(model))
    ends = {name: processor.piece_to_id(name) for name in ("[unused9]", "[unused10]")}
    decoder = {str(index): added(name, special=True) for name, index in {"<unk>": 0, "<s>": 1, "</s>": 2, **ends}.items()}
    code = 'raise SystemExit("the code of the checkpoint was run")'
    config = {
        "tokenizer_class": "PanguTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_openpangu.PanguTokenizer", None]},
        "added_tokens_decoder": decoder,
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "[unused10]",
        "unk_token": "<unk>",
        "chat_template": "{{ bos_token }}{% for m in messages %}[unused9]{{ m.role }}:{{ m.content }}[unused10]{% endfor %}",
    }
    files = {"tokenizer.model": model, "tokenizer_config.json": config}
    case = Case(tmp_path, files | {"tokenization_openpangu.py": code, "modeling_openpangu_dense.py": code}, "pangu")
    for text in [*TEXT, " leading", "two  spaces", "trailing "]:
        assert case.tokenizer.encode(text) == [1, *processor.encode(text)]
        assert case.tokenizer.decode(processor.encode(text)) == processor.decode(processor.encode(text))
    assert case.tokenizer.encode("[unused9]Hi[unused10]")[1] == ends["[unused9]"]
    assert ends["[unused10]"] in case.stops
    assert case.tokenizer.encode_chat(Chat([{"role": "user", "content": "Hi"}]))[0] == 1
    assert capsys.readouterr().out == ""


def test_code_of_a_checkpoint_is_neither_asked_about_nor_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> str:
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", asked)
    code = 'raise SystemExit("the code of the checkpoint was run")'
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    with pytest.raises(UsageError, match=r"no tokenizer: tokenizer\.json or one of"):
        Case(tmp_path / "none", {"tokenizer_config.json": config, "tokenization_own.py": code})
    file = byte_level()
    case = Case(tmp_path / "file", {"tokenizer.json": file, "tokenizer_config.json": config, "tokenization_own.py": code})
    assert case.tokenizer.encode(TEXT[0]) == file.encode(TEXT[0]).ids


def test_the_reason_of_a_failed_conversion_is_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Case(tmp_path, {"tokenizer.model": "no pieces", "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"}}, "llama2")
    assert "model: transformers cannot load the tokenizer (" in str(caught.value)
    assert "pars" in str(caught.value).lower()  # of the pieces, and not another library that is missing


def test_named_templates_are_kept_beside_the_default_one(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    case = Case(tmp_path, {"tokenizer.json": byte_level(), "tokenizer_config.json": {"chat_template": named}})
    assert (case.written / "chat_template.jinja").read_text() == "plain"
    assert (case.written / "additional_chat_templates" / "tool_use.jinja").read_text() == "with tools"


def test_templates_in_files_of_their_own_are_read(tmp_path: Path) -> None:
    files = {"chat_template.jinja": "plain", "additional_chat_templates/rag.jinja": "with documents"}
    case = Case(tmp_path, {"tokenizer.json": byte_level(), "tokenizer_config.json": {}, **files})
    assert (case.written / "chat_template.jinja").read_text() == "plain"
    assert (case.written / "additional_chat_templates" / "rag.jinja").read_text() == "with documents"


def test_a_template_of_a_processor_is_read(tmp_path: Path) -> None:
    files = {"tokenizer.json": byte_level(), "tokenizer_config.json": {}, "chat_template.json": {"chat_template": "plain"}}
    assert (Case(tmp_path, files).written / "chat_template.jinja").read_text() == "plain"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if messages[-1].role != 'user' %}{{ raise_exception('no answers') }}{% endif %}Q:{{ messages[0].content }}", "Q:Hi"),
        ("{{ raise_exception('never') }}", "Hi\n\nHello"),
        ("{% for m in messages %}{{ m.content }};{% endfor %}", "Hi;Hello;"),
    ],
)
def test_a_template_that_refuses_a_conversation_does_not_stop_calibration(tmp_path: Path, template: str, expected: str) -> None:
    case = Case(tmp_path, {"tokenizer.json": byte_level(), "tokenizer_config.json": {"chat_template": template}})
    assert case.tokenizer.decode(encode_messages(case.tokenizer, MESSAGES)) == expected
