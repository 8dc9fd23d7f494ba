"""What a row of the ledger is: an equation, a sentence, and checks that can fail."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import sympy

CHAPTERS = {
    "gm": "Model Merging by Gradient Matching (GM)",
    "gma": "Its appendix (GMA)",
    "fp": "How to Weight Multitask Finetuning? Fast Previews (FP)",
    "misprints": "What is printed wrongly",
}


@dataclasses.dataclass(frozen=True)
class Check:
    """One number and what it must be: `low` ≤ measured ≤ `high`."""

    what: str
    problem: str
    measured: float
    low: float
    high: float
    required: str

    @property
    def holds(self) -> bool:
        return bool(self.low <= self.measured <= self.high)

    def __str__(self) -> str:
        verb = "holds" if self.holds else "FAILS"
        return (
            f"{self.what} ({self.problem}): {self.measured:.3g}, required {self.required}: {verb}"
        )


@dataclasses.dataclass(frozen=True)
class Row:
    id: str
    latex: str
    checks: Callable[[], Iterator[Check]]

    @property
    def says(self) -> str:
        return inspect.cleandoc(self.checks.__doc__ or "")

    @property
    def chapter(self) -> str:
        return self.checks.__module__.removeprefix("ledger.")


BOOK: dict[str, Row] = {}


def equation(id: str, latex: str) -> Callable[[Callable], Callable]:
    """Enter a generator of checks into the book under the id of its equation."""

    def enter(checks: Callable) -> Callable:
        assert id not in BOOK, f"{id} is in the book twice"
        BOOK[id] = Row(id, " ".join(latex.split()), checks)
        return checks

    return enter


def equal(what: str, problem: str, actual, expected, within: float = 1e-10, scale=None) -> Check:
    """‖actual − expected‖ relative to ‖expected‖, or to `scale`."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    size = np.linalg.norm(expected) if scale is None else np.linalg.norm(scale)
    error = np.linalg.norm(actual - expected) / size
    return Check(what, problem, float(error), 0.0, within, f"≤ {within:.0e}")


def stationary(what: str, problem: str, objective: Callable, at, scale=None) -> Check:
    """The gradient of `objective` by automatic differentiation, relative to `at` or to `scale`."""
    gradient = np.asarray(jax.jit(jax.grad(objective))(jnp.asarray(at)))
    return equal(what, problem, gradient, 0 * gradient, scale=at if scale is None else scale)


def differs(what: str, problem: str, printed, right, by: float = 0.01) -> Check:
    """‖printed − right‖/‖right‖, which must be large: the printed form is wrong."""
    printed, right = np.asarray(printed, float), np.asarray(right, float)
    assert printed.shape == right.shape, (printed.shape, right.shape)
    error = np.linalg.norm(printed - right) / np.linalg.norm(right)
    return Check(what, problem, float(error), by, np.inf, f"> {by:g}")


def order(
    what: str, problem: str, error: Callable[[float], float], expected: float, h: float = 2.0**-7
) -> Check:
    """The exponent p in error(h) ∝ h^p, from halving h."""
    measured = np.log2(error(h) / error(h / 2))
    required = f"{expected:g} ± 0.1"
    return Check(what, problem, float(measured), expected - 0.1, expected + 0.1, required)


def between(what: str, problem: str, measured, low: float, high: float, required: str) -> Check:
    return Check(what, problem, float(measured), low, high, required)


def symbolic(what: str, *zeros) -> Check:
    """Expressions that sympy must find to be zero; how many it does not."""
    left = sum(any(sympy.simplify(entry) != 0 for entry in sympy.Matrix([zero])) for zero in zeros)
    return Check(what, "symbols", float(left), 0.0, 0.0, "0 left over")
