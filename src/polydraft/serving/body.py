"""A request's bytes to a checked body: what it costs is bounded before anything is made of them."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.json_schema import models_json_schema
from pydantic_core import from_json

from polydraft.serving.errors import ApiError, refused
from polydraft.serving.schemas import Sampling

Body = TypeVar("Body", bound=Sampling)

MOST_PARTS = 65_536
"""Lists, objects and fields of one body, at any depth; numbers and texts in lists are not counted."""
NOT_JSON = "the body must be a JSON object, sent as application/json"
REF = "#/components/schemas/{model}"

_STRING = re.compile(rb'"[^"]*"?')


def parse(content: bytes, kind: type[Body]) -> Body:
    """The body that `content` is; stops at the first thing wrong with it.

    Raises:
        ApiError: it is not JSON, has more than `MOST_PARTS` parts, or is no `kind`; names the field.
    """
    if parts(content) > MOST_PARTS:
        raise ApiError(
            400, f"the body may have at most {MOST_PARTS} lists, objects and fields", code="body_too_complex"
        )
    try:
        given = from_json(content)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(given, dict):
        raise ApiError(400, NOT_JSON)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _told(error, given) from error


def parts(content: bytes) -> int:
    """Lists, objects and fields of a JSON text, exactly where they are more than `MOST_PARTS`.

    Linear in `content`: escapes are taken out first, so that a string ends at the next quotation mark.
    """
    found = _marks(content)
    if found <= MOST_PARTS:
        return found
    plain = content.replace(rb"\\", b"").replace(rb"\"", b"")
    return _marks(_STRING.sub(b"", plain))


def _marks(content: bytes) -> int:
    return sum(content.count(mark) for mark in (b"[", b"{", b":"))


def is_json(content_type: str) -> bool:
    """Whether a header says so."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def described(kind: type[Sampling]) -> dict[str, Any]:
    """What OpenAPI says of a call with such a body."""
    content = {"application/json": {"schema": {"$ref": REF.format(model=kind.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def schemas(*kinds: type[Sampling]) -> dict[str, Any]:
    """The schemas of bodies, by name, for OpenAPI's components."""
    _, found = models_json_schema([(kind, "validation") for kind in kinds], ref_template=REF)
    defined: dict[str, Any] = found["$defs"]
    return defined


def _told(error: ValidationError, body: dict[str, Any]) -> ApiError:
    """One thing wrong with a body, in the first field that has one.

    Where a field may be of several types there is an error for each. The one that says most looks into a
    value rather than at its type, and has come furthest in the body.
    """
    found = error.errors(include_url=False, include_input=False, include_context=False)
    of_field = [one for one in found if one["loc"][:1] == found[0]["loc"][:1]]
    places = [_place(one["type"], one["loc"], body) for one in of_field]
    which = max(range(len(of_field)), key=lambda at: _says(of_field[at]["type"], places[at]))
    worst, where = of_field[which], places[which]
    if worst["type"] == "unknown_field":
        return refused(worst["msg"], param=str(where[0]), code="unknown_parameter")
    return refused(f"{'.'.join(map(str, where))}: {worst['msg']}", param=str(where[0]), code="invalid_value")


def _place(kind: str, loc: tuple[int | str, ...], body: Any) -> list[int | str]:
    """Where in the body an error is: its `loc` without the names that pydantic gives to types."""
    out: list[int | str] = []
    for part in loc:
        inside = isinstance(body, dict) and part in body
        if inside or (isinstance(body, list) and isinstance(part, int)):
            out.append(part)
            body = body[part]
    return [*out, loc[-1]] if kind == "missing" else out


def _says(kind: str, where: list[int | str]) -> tuple[bool, int, list[int]]:
    """How much an error says; more is greater."""
    return not kind.endswith("_type"), len(where), [part for part in where if isinstance(part, int)]
