"""Options that commands share, and how a command gets its model and head."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from polydraft.cli.completion import complete_name
from polydraft.modes import VERIFIER, check_verifier
from polydraft.ranks import rank

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from polydraft.bench.runs import Sampling
    from polydraft.heads import DraftHead

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        autocompletion=complete_name,
        help="Base model: folder, hub id (owner/name, owner/name@revision), or smollm2-135m-instruct.",
    ),
]
HeadName = Annotated[
    str,
    typer.Option(
        "--head",
        metavar="NAME",
        autocompletion=complete_name,
        help="Draft head: folder, hub id (owner/name, owner/name@revision), or smollm2-135m-instruct.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="Tokens to generate at most; an end token stops earlier.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy; above 0, sample.")]
TopK = Annotated[int, typer.Option(help="Sample from the k most likely tokens only; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Sample from the smallest set of this probability; 1 keeps all.")]
Verification = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Of sampled drafts: token, one by one, or block, together (keeps more of them)."
    ),
]
Drafting = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto: tree, several continuations checked together, where the model takes them; chain, one.",
    ),
]
DraftLength = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Drafts a step; by default the fastest number here, measured once. 0 disables drafting.",
        show_default=False,
    ),
]
LookupTokens = Annotated[
    int | None,
    typer.Option(
        "--prompt-lookup-num-tokens",
        metavar="N",
        help="Where the text repeats itself draft N tokens by copying (prompt lookup), else by the head.",
        show_default=False,
    ),
]
Compiled = Annotated[
    bool,
    typer.Option("--compile", help="Compile the model's layers first: some seconds, more the first time."),
]
Components = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="Evaluate the K likeliest components alone when drafting, 0 for all; else as trained.",
        show_default=False,
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        metavar="NAME",
        autocompletion=complete_name,
        help="LoRA adapter of the model: the head trained with it, or its folder `adapter`.",
        show_default=False,
    ),
]
Verifier = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="With --adapter, whose text it is: the adapted model's (trained) or the untouched one's (base).",
    ),
]
DtypeName = Annotated[
    str,
    typer.Option("--dtype", metavar="NAME", help="auto (bfloat16), float32, bfloat16 or float16."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="CPU threads; by default 1 on one or two cores, else torch's choice.", show_default=False
    ),
]


Check = Callable[["PreTrainedTokenizerBase"], object]
"""What is asked of a tokenizer before its model is loaded; raises where it will not do."""


@dataclass(frozen=True)
class Session:
    """A loaded model with its head. `threads` is a line that says how many run, and why."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: DraftHead
    dtype: torch.dtype
    threads: str


def error_console() -> Console:
    """Where progress and remarks go, so that stdout holds results alone; the first process speaks."""
    return Console(stderr=True, highlight=False, quiet=rank() > 0)


def begin(*, dtype: str, threads: int | None, console: Console) -> tuple[torch.dtype, str]:
    """Import what loads models, quietly; the dtype by its name, and the line about threads."""
    with console.status("starting"):
        import transformers
        from huggingface_hub.utils import logging as hub_logging

        from polydraft import loading

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        hub_logging.set_verbosity_error()
        return loading.parse_dtype(dtype), loading.set_threads(threads)


def open_model(
    *,
    model: str,
    dtype: str,
    threads: int | None,
    console: Console,
    adapter: str | None = None,
    check: Check | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Load `model`, showing the stages on `console`; last comes the line about threads.

    `check` is called with the tokenizer before the model itself is loaded.
    """
    parsed, note = begin(dtype=dtype, threads=threads, console=console)
    from polydraft import loading

    with console.status(f"loading {model}"):
        base, tokenizer = loading.load_model(
            model, dtype=parsed, adapter=adapter, on_progress=console.print, check=check
        )
    return base, tokenizer, note


def open_scratch(
    *, config: str, tokenizer: str | None, seed: int, dtype: str, threads: int | None, console: Console
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Make a model of random weights from the file `config`; otherwise as `open_model`."""
    parsed, note = begin(dtype=dtype, threads=threads, console=console)
    from polydraft.training.scratch import load_tokenizer, own_tokenizer, scratch_model

    vocabulary = load_tokenizer(tokenizer) if tokenizer else own_tokenizer(Path(config))
    return scratch_model(Path(config), vocabulary, seed=seed, dtype=parsed), vocabulary, note


def open_session(
    *,
    model: str,
    head: str,
    dtype: str,
    threads: int | None,
    console: Console,
    components: int | None = None,
    adapter: str | None = None,
    verifier: str = VERIFIER,
    check: Check | None = None,
) -> Session:
    """Load `model` and `head`, showing the stages on `console`; arguments as the user gave them.

    What can be told of names, options and the head's configuration is checked before the model is loaded; so
    is what `check` makes of the tokenizer.
    """
    with console.status("starting"):
        from polydraft import loading
        from polydraft.decoding.adapted import verify_with_base
        from polydraft.sources import adapter_folder

        check_verifier(verifier, adapter=adapter is not None)
        loading.find_head(head, components=components)
        if adapter is not None:
            adapter_folder(adapter)
    base, tokenizer, note = open_model(
        model=model, dtype=dtype, threads=threads, console=console, adapter=adapter, check=check
    )
    attached = loading.load_head(head, model=base, tokenizer=tokenizer, components=components)
    if verifier == "base":
        verify_with_base(base, attached)
    return Session(base, tokenizer, attached, base.dtype, note)


def prepare(session: Session, sampling: Sampling, *, console: Console) -> None:
    """Compile and measure before the first text, showing the stages on `console`."""
    from polydraft.decoding import decoder

    with console.status("preparing") as status:
        method = decoder(session.head, **sampling.modes)
        method.prepare(session.model, do_sample=not sampling.greedy, on_progress=status.update)


def command_line(program: str = "polydraft") -> str:
    """The command as the user gave it, `program` first."""
    return f"{program} {shlex.join(sys.argv[1:])}"
