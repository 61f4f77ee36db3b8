"""`polydraft serve`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from polydraft.cli import options
from polydraft.errors import PolydraftError
from polydraft.extras import install
from polydraft.modes import DRAFTING

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
LOOPBACK = ("127.", "localhost", "::1")


def serve(
    *,
    model: options.ModelName,
    head: options.HeadName,
    host: Annotated[
        str, typer.Option(help="Address to serve at; by default this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="0 takes a free one.")] = 8000,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that requests may call the server by, beside localhost, --host and numeric addresses; "
            "* for any; may be repeated.",
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="POLYDRAFT_API_KEY",
            help="What calls must carry; better by the environment.",
            show_default=False,
        ),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            help="What requests call the model; by default its folder's or hub id's name.", show_default=False
        ),
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Texts decoded together.")] = 8,
    max_queue: Annotated[int, typer.Option(help="Texts that may wait for room; more are refused.")] = 128,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            help="Tokens of prompt and answer; by default as many as the model takes.", show_default=False
        ),
    ] = None,
    prefill_chunk_size: Annotated[
        int,
        typer.Option(help="Tokens of prompts read at a time; the texts that are being written grow between."),
    ] = 256,
    timeout_seconds: Annotated[float, typer.Option(help="Limit of a request, waiting included.")] = 600.0,
    receive_seconds: Annotated[
        float, typer.Option(help="A request whose bytes take longer to arrive is given up.")
    ] = 60.0,
    shutdown_seconds: Annotated[
        float, typer.Option(help="After SIGTERM, what was begun gets so long to finish.")
    ] = 30.0,
    max_body_bytes: Annotated[int, typer.Option(help="Limit of a request's size.")] = 8 << 20,
    access_log: Annotated[
        bool,
        typer.Option("--access-log", help="A line for each request: method, path, status, seconds, id."),
    ] = False,
    drafting: options.Drafting = DRAFTING,
    draft_length: options.DraftLength = None,
    prompt_lookup_num_tokens: options.LookupTokens = None,
    compiled: options.Compiled = False,
    components: options.Components = None,
    adapter: options.Adapter = None,
    dtype: options.DtypeName = "auto",
    threads: options.Threads = None,
) -> None:
    """Answer OpenAI's HTTP calls, drafted; with a page to try it at `/`.

    Example: polydraft serve --model smollm2-135m-instruct --head smollm2-135m-instruct
    """
    for package in NEEDED:
        if find_spec(package) is None:
            raise PolydraftError(f"serving needs {package}: {install('serve')}")
    from polydraft.serving.settings import Settings

    settings = Settings(
        api_key=api_key,
        max_num_seqs=max_num_seqs,
        max_queue=max_queue,
        prefill_chunk_size=prefill_chunk_size,
        timeout_seconds=timeout_seconds,
        receive_seconds=receive_seconds,
        shutdown_seconds=shutdown_seconds,
        max_body_bytes=max_body_bytes,
        access_log=access_log,
        allowed_hosts=(host, *(allowed_host or ())),
    )
    from polydraft.serving.run import bound

    listener = bound(host, port)
    console = options.error_console()
    if api_key is None and not host.startswith(LOOPBACK):
        console.print(f"warning: anyone who reaches {host} may use this server: set POLYDRAFT_API_KEY")
    session = options.open_session(
        model=model,
        head=head,
        dtype=dtype,
        threads=threads,
        console=console,
        components=components,
        adapter=adapter,
    )
    from polydraft.decoding.plan import Plan
    from polydraft.serving import app, run, service
    from polydraft.serving.model import served

    run.log_to_stderr(access=access_log)
    plan = Plan(
        drafting=drafting,
        draft_length=draft_length,
        prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        compiled=compiled,
    )
    name = served_model_name or (Path(model).resolve().name if Path(model).is_dir() else model)
    with console.status("preparing"):
        what = served(
            session.model,
            session.head,
            session.tokenizer,
            name=name,
            rows=max_num_seqs,
            plan=plan,
            max_model_len=max_model_len,
            prefill_chunk_size=settings.prefill_chunk_size,
        )
        opened = service.open_service(what, settings)
    console.print(session.threads)
    run.serve(
        app.create_app(opened),
        opened,
        listener,
        on_ready=lambda address: print(f"serving {name} at {address}", flush=True),
    )
