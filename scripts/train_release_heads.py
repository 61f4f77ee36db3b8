"""Make the heads that ship: text the model writes itself, training stages, figures, comparison, installation.

    python scripts/train_release_heads.py lab/configs/release/smollm2-135m-instruct.toml [--install]

Each step is the `polydraft` command that a user would give, printed before it runs. What is complete is not
done again; what was killed continues. `--install` puts the head in place of the one that ships if it decodes
the validation prompts in fewer steps, greedy and at T = 1 together.

A machine without network needs the repository, `runs/` (prompts and text) and the base model as a folder:
`--model DIR`. To carry a file in parts: `split -b 16M FILE part-`, and `cat part-* > FILE` to join them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

HEAD_FILES = ("model.safetensors", "training.json", "training.png", "config.json")
TEMPERATURES = {"greedy": 0, "sampled": 1}


def words(options: dict[str, Any]) -> list[str]:
    """A table of options as the words of a command: lists repeat the option, patterns of files are spread."""
    out: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            out += [flag] if value else []
            continue
        for item in value if isinstance(value, list) else [value]:
            found = sorted(Path().glob(item)) if isinstance(item, str) and "*" in item else [item]
            if not found:
                sys.exit(f"{name}: no file like {item}; run the steps before, or put the text there")
            out += [word for each in found for word in (flag, str(each))]
    return out


def run(*arguments: str) -> None:
    """One `polydraft` command; its failure ends the script with its exit code."""
    print("$", shlex.join(["polydraft", *arguments]), flush=True)
    status = subprocess.run([sys.executable, "-m", "polydraft", *arguments], check=False).returncode
    if status:
        sys.exit(status)


def prepare(options: dict[str, Any]) -> None:
    """Make the file of prompts by the commands that the configuration gives."""
    if Path(options["file"]).exists():
        return
    for command in options["commands"]:
        print("$", command, flush=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        if status := subprocess.run(
            command, shell=True, env=os.environ | {"PATH": path}, check=False
        ).returncode:
            sys.exit(status)


def collect(model: str, options: dict[str, Any], *, workers: int) -> None:
    """Let the model write the text, in `workers` processes."""
    done = Path(options["out"]) / "complete"
    if done.exists():
        return
    command = [sys.executable, "-m", "polydraft", "collect", "--model", model, *words(options)]
    print("$", shlex.join(["polydraft", *command[3:], "--worker", f"I/{workers}"]), flush=True)
    running = [subprocess.Popen([*command, "--worker", f"{i}/{workers}"]) for i in range(workers)]
    failed = [process.returncode for process in running if process.wait()]
    if failed:
        sys.exit(failed[0])
    done.touch()


def train(model: str, out: Path, options: dict[str, Any]) -> None:
    """One stage, from its start or from its last checkpoint."""
    if (out / "config.json").exists():
        return
    resume = ["--resume"] if (out / "run.json").exists() else []
    run("train", "--model", model, "--out", str(out), *words(options), *resume)


def figures(model: str, head: str, name: str, options: dict[str, Any], folder: Path) -> dict[str, float]:
    """Mean acceptance lengths over all prompts, by way of decoding."""
    found = {}
    for mode, temperature in TEMPERATURES.items():
        path = folder / f"{name}-{mode}.json"
        if not path.exists():
            given = ["--temperature", str(temperature), "--json", str(path)]
            run("bench", "--model", model, "--head", head, *words(options), *given)
        found[mode] = json.loads(path.read_text())["all"]["mean_acceptance_length"]
    return found


def main() -> None:
    """Run the steps of a configuration that are not done yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--model", help="the base model's folder, where its name cannot be loaded")
    parser.add_argument("--install", action="store_true", help="replace the head that ships, if better")
    given = parser.parse_args()
    if not given.config.is_file():
        parser.error(f"{given.config}: no such file")
    config = tomllib.loads(given.config.read_text())
    model, folder = given.model or config["model"], Path(config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    if "prompts" in config:
        prepare(config["prompts"])
    if "collect" in config:
        workers = config["collect"].pop("workers", 1)
        collect(model, config["collect"], workers=workers)
    for stage in config["stages"]:
        name = stage.pop("name")
        train(model, folder / name, config["train"] | stage)
    last = folder / name
    new = figures(model, str(last), "new", config["bench"], folder)
    print(f"new head: {new['greedy']:.3f} tokens per step greedy, {new['sampled']:.3f} at T = 1")
    if not given.install:
        return
    old = figures(model, config["model"], "shipped", config["bench"], folder)
    print(f"shipped head: {old['greedy']:.3f} tokens per step greedy, {old['sampled']:.3f} at T = 1")
    if sum(new.values()) <= sum(old.values()):
        sys.exit("the head that ships is better: nothing was replaced")
    target = Path("heads") / config["model"]
    for file in HEAD_FILES:
        shutil.copyfile(last / file, target / file)
    run("card", str(target), "--name", config["model"])
    print(f"installed in {target}")


if __name__ == "__main__":
    main()
