"""Read what other commands have written, with one-line errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lab.project.presets import MODELS, model_shape
from lab.project.shapes import ModelShape, shape_of
from polydraft.errors import InputError

OVERHEAD = ("machine", "trunk", "cells", "sizes", "context")
"""What a results.json of `python -m lab overhead` holds."""
GRID = ("cells", "speed_tokens")
"""What a results.json of `python -m lab grid` holds."""


def read_shape(name: str, *, weight_bytes: float) -> ModelShape:
    """A model's sizes: one of `MODELS`, or a transformers config.json or the folder that it lies in.

    Raises:
        InputError: neither, or a model that the roofline does not know.
    """
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if name in MODELS or not path.exists():
        return replace(model_shape(name), weight_bytes=weight_bytes)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no configuration of a model that transformers knows") from error
    return shape_of(config, weight_bytes=weight_bytes, name=path.parent.name or str(path))
