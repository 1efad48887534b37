"""Tokenizers of every kind that checkpoints have, small: their ids are all interesting."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as File

from quasar.runtime.tokenizer import Tokenizer

SPECIAL = ("<s>", "</s>", "<|end|>")
SPACE = "\u2581"
LETTERS = (*"abcdefghijklmnopqrstuvwxyzT.,", "é", "漢", "\u200d")
PIECES = (SPACE, *LETTERS, f"{SPACE}has", f"{SPACE}boxes", f"{SPACE}of", f"{SPACE}a", "  ")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def byte_level() -> File:
    """As GPT-2, Llama 3 and Qwen have it: every token is bytes, and characters may be cut."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("Ġ", "h"), ("Ġ", "b"), ("a", "s"), ("Ġh", "as"), ("æ", "¼"), ("ð", "Ł"), ("ðŁ", "ĺ")]
    vocab = {piece: index for index, piece in enumerate([*alphabet, *("".join(pair) for pair in pairs)])}
    file = File(models.BPE(vocab, pairs))
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.decoder = decoders.ByteLevel()
    return _with_special(file)


def byte_fallback() -> File:
    """As Llama 2 and Mistral have it: a space at the beginning of a word's token, bytes for what has no token."""
    file = File(_pieces())
    file.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    strip = decoders.Strip(" ", 1, 0)
    file.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return _with_special(file)


def metaspace(prepend_scheme: str) -> File:
    """As newer files of sentencepiece models have it, without bytes."""
    file = File(_pieces())
    file.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme, split=False)
    file.decoder = decoders.Metaspace(SPACE, prepend_scheme, split=False)
    return _with_special(file)


def with_bos(file: File) -> File:
    """A copy that puts `<s>` before every text."""
    copy = File.from_str(file.to_str())
    copy.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", copy.token_to_id("<s>"))])
    return copy


def opened(file: File, folder: Path) -> Tokenizer:
    """The file as the runtime has it."""
    folder.mkdir(parents=True, exist_ok=True)
    file.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder, file.get_vocab_size())


def _pieces() -> models.BPE:
    vocab = {piece: index for index, piece in enumerate(["<unk>", *BYTES, *PIECES])}
    merges = [(SPACE, "a")]
    return models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def _with_special(file: File) -> File:
    file.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    file.add_tokens([AddedToken("[TOOL]", normalized=False)])
    return file


FILES = {
    "byte-level": byte_level(),
    "byte-fallback": byte_fallback(),
    **{f"metaspace-{scheme}": metaspace(scheme) for scheme in ("first", "always", "never")},
}
"""By their kind."""
