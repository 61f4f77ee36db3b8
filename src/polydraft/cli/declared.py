"""Commands made from dataclasses whose fields are options, see `polydraft.options`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from polydraft.options import option_of


def with_options(kind: type, *, parameter: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command takes an option for each field of `kind` in place of `parameter`.

    A field that is a tuple is an option that may be repeated, one that is True or False a flag.

    Args:
        kind: a dataclass whose fields are all made by `polydraft.options.option`; `parameter` gets one.
    """
    declared = fields(kind)
    types = get_type_hints(kind)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for name, own in inspect.signature(function).parameters.items():
            if name == parameter:
                parameters += [_parameter(one, types[one.name]) for one in declared]
            else:
                parameters.append(own.replace(annotation=hints[name]))

        def command(**given: Any) -> None:
            chosen: dict[str, Any] = {}
            for one in declared:
                chosen[one.name] = _value(one, types[one.name], given.pop(one.name), chosen)
            function(**given, **{parameter: kind(**chosen)})

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def _parameter(declared: Field[Any], kind: Any) -> inspect.Parameter:
    """One option as typer reads it."""
    said, default = option_of(declared), declared.default
    flag = said.flag or "--" + declared.name.replace("_", "-")
    shown: str | bool = said.shown or True
    if get_origin(kind) is tuple:
        kind, default, shown = list[get_args(kind)[0]] | None, None, False  # type: ignore[misc]
    elif said.otherwise is not None:
        kind, default, shown = kind | None, None, False
    given = typer.Option(flag, help=said.help, metavar=said.metavar, show_default=shown)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(declared.name, keyword, default=default, annotation=Annotated[kind, given])


def _value(declared: Field[Any], kind: Any, given: Any, before: dict[str, Any]) -> Any:
    """The value of a field from what the command line gave."""
    if get_origin(kind) is tuple:
        return tuple(given or ())
    otherwise = option_of(declared).otherwise
    return otherwise(before) if given is None and otherwise is not None else given
