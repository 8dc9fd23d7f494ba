"""The user's metric: imported by name, its errors told as its own."""

import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import typer

from bayesmerge.previews.measure import Metric


def imported(reference: str) -> Metric:
    """The function that `module:function` names, the current folder searched first."""
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        raise typer.BadParameter(
            f"'{reference}' must be module:function, such as mymetric:accuracy for the function "
            "accuracy of mymetric.py.",
            param_hint="METRIC",
        )
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise typer.BadParameter(
            f"module '{module_name}' cannot be imported: {_last_line(error)}. It is looked for in "
            f"{os.getcwd()} and among what is installed; of mymetric.py the module is mymetric.",
            param_hint="METRIC",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise typer.BadParameter(
            f"there is no function '{function_name}' in "
            f"{getattr(module, '__file__', None) or module_name}.",
            param_hint="METRIC",
        )
    return function


def reporting(metric: Metric, reference: str, posteriors: Mapping[str, Any]) -> Metric:
    """The metric by name, with errors that say that they are its own."""
    layout = next(iter(posteriors.values())).layout

    def reporting(params: Any) -> Any:
        try:
            values = metric(params)
        except Exception as error:
            remedy = f"It is called with the merged model's parameters: {_leaves(layout)}."
            if isinstance(error, (jax.errors.JAXTypeError, jax.errors.TracerArrayConversionError)):
                remedy = (
                    "It is compiled by JAX: write it with jax.numpy, or give --uncompiled for a "
                    "metric of NumPy or scikit-learn."
                )
            raise typer.BadParameter(
                f"the metric {reference} failed: {_last_line(error)}. {remedy}", param_hint="METRIC"
            ) from error
        return values if isinstance(values, Mapping) else {reference.partition(":")[2]: values}

    return reporting


def _leaves(layout: Any, most: int = 8) -> str:
    named = [f"{n} {s}".strip() for n, s in zip(layout.names, layout.shapes, strict=True)]
    return ", ".join(named[:most]) + (", …" if len(named) > most else "")


def _last_line(error: Exception) -> str:
    """The last line of a traceback, and the line of code of the user's that it came from."""
    said = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".: ")
    here = [
        f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(os.getcwd())
    ]
    return f"{said} ({Path(here[-1].filename).name}, line {here[-1].lineno})" if here else said
