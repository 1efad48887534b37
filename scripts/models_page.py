#!/usr/bin/env python3
"""Write docs/models.md and the list of families in README.md from the tables of the code.

python scripts/models_page.py           # writes
python scripts/models_page.py --check   # exit code 1 where a page is out of date
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path

from quasar.exporter.model.architecture import ROPE_TYPES
from quasar.exporter.model.families import FAMILIES
from quasar.exporter.model.fields import ACTIVATIONS
from quasar.exporter.model.folder import NAMES, OLD_TOKENIZERS
from quasar.exporter.model.gguf_file import READ
from quasar.exporter.model.location import ALIASES
from quasar.exporter.model.weights import FLOAT_DTYPES

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs/models.md", ROOT / "README.md"
LIST = re.compile(r"(?<=<!-- families -->\n).*?(?=<!-- /families -->)", re.DOTALL)


def page() -> str:
    """The text of docs/models.md."""
    rows = [f"| `{name}` | {family.title} | {family.differs or '-'} |" for name, family in FAMILIES.items()]
    beginnings = ("token", "special", "added", "vocab", "merges", "spiece", "sentencepiece")
    tokenizers = ", ".join(f"`{name}`" for name in (*NAMES, *OLD_TOKENIZERS) if name.startswith(beginnings))
    aliases = [f"| `{alias}` | {repository} |" for alias, repository in ALIASES.items()]
    return f"""# Models

<!-- made by scripts/models_page.py from the tables of the code -->

The parts that a decoder may have: RMSNorm before or after attention and MLP, a gate of SiLU or GELU,
grouped-query attention with rotary embeddings and windows by layer, norms of queries and keys,
biases. A family is a reader that says which it has and how its tensors are stored
(`exporter/model/families.py`). For each, a tiny model gives transformers' logits token by token, in
both forms of attention, and passes the gate as int8.

## Families

| `model_type` | models | differs from a Llama in |
|---|---|---|
{chr(10).join(rows)}

* **Rope types**: {", ".join(ROPE_TYPES)}. `dynamic` is read within the original context, which is
  then the most positions. `longrope` takes its short factors where `--max-length` is within the
  original context, and its long ones else.
* **Positions**: with YaRN, the original context times its factor, where the configuration says less.
* **Activations** (`hidden_act`): {", ".join(ACTIVATIONS)}.
* **Norms after the blocks** leave nothing to fold SmoothQuant's scales of q, k, v, gate and up into
  where there are none before, and the residual stream is not rotated.
* Multipliers (Granite, Gemma), interleaved and partial rotary embeddings (ERNIE, GLM, Phi) and
  `1 + w` norms are folded into the weights: engines do not know of them.
* Not read: experts, recurrent layers, soft caps of logits, models in other formats.

## Weights

safetensors in {", ".join(FLOAT_DTYPES)}. As in transformers:

* a whole `model.safetensors` wins over an index beside it;
* names may lack `model.`, or have what surrounds the text part of a larger model (`language_model.`);
  vision towers and heads for several tokens are left out;
* of tied embeddings, either may be stored; an `lm_head` that differs is kept though the
  configuration says that it is tied.

## GGUF

`--model FILE.gguf` reads files whose `general.architecture` is {", ".join(f"`{name}`" for name in READ)}: F32, F16,
BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K and whatever else the package `gguf` dequantizes. Tokenizer and
template come from its metadata. The float model is that of the file, whose weights were quantized
before: the manifest says so under `model.gguf_types`, and all figures are against it. transformers
reads the whole file into memory as float32 for the gate.

Stretched ropes are read from the file, though transformers leaves them out: `rope.scaling` (linear,
yarn) and the divisors `rope_freqs.weight` of Llama 3.

## Tokenizers

The tokenizer of a bundle is what transformers loads from all files together:
{tokenizers},
with templates from `tokenizer_config.json`, `chat_template.jinja`, `chat_template.json` and
`additional_chat_templates/`. Code of a checkpoint is never run: a tokenizer whose class is in the
checkpoint (openPangu) is made from its files alone.

An answer ends at the end tokens of `generation_config.json`, `config.json` and the tokenizer, and at
the token that the chat template puts behind an answer.

## Aliases

| alias | model |
|---|---|
{chr(10).join(aliases)}
"""


def readme() -> str:
    """README.md with the list of families."""
    titles = list(dict.fromkeys(family.title.split(" (")[0] for family in FAMILIES.values()))
    listed = textwrap.fill("; ".join(titles) + ".", 100)
    return LIST.sub(lambda _: f"{listed}\n", README.read_text(encoding="utf-8"))


def main() -> int:
    """Write or check both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    wanted = {PAGE: page(), README: readme()}
    stale = [file for file, text in wanted.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]
    for file in stale:
        if args.check:
            print(f"{file.relative_to(ROOT)} is out of date; run python scripts/models_page.py", file=sys.stderr)
        else:
            file.write_text(wanted[file], encoding="utf-8")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
