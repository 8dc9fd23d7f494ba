r"""Why a merged model is not the jointly trained one: gradient mismatch, task by task.

With surrogates ℓ̂_t = −log q_t/p_0 and joint solution θ*, both modes' conditions subtract to

$$\bar H(\theta^* - \hat\theta) = -\sum_t \alpha_t[\nabla\ell_t(\theta^*)
- \nabla\hat\ell_t(\theta^*)],$$

an identity for any losses and any Gaussian q_t, H̄ the precision of the merged posterior. For
q_t = N(θ_t, H_0⁻¹), task arithmetic, the surrogate's gradient is ∇ℓ_t(θ_t) everywhere and H̄ = H_0:
that is GM-8, and GM-4 where H_0 = I and θ_0 = 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.checks import require, require_finite
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import as_arrays
from bayesmerge.families.show import safely, table
from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.optimise import require_target
from bayesmerge.merging import combined, merge
from bayesmerge.priors import as_prior
from bayesmerge.tasks import as_weights, matched, named


class Mismatch(eqx.Module):
    """What separates a merged model from the joint solution: every field is shaped as θ.

    `solution − merged` is the sum of `contributions`, `correction` and `residual`.

    - `merged`: θ̄.
    - `solution`: θ*, exact or estimated.
    - `gradients`: by task, the gradient mismatch ∇ℓ_t(θ*) − ∇ℓ̂_t(θ*).
    - `contributions`: by task, its share of the error, −α_tH̄⁻¹[∇ℓ_t(θ*) − ∇ℓ̂_t(θ*)].
    - `correction`: θ̂ − θ̄, where θ̄ is not the mode θ̂ of the merged posterior.
    - `residual`: H̄⁻¹∇ of the joint objective at θ*; not zero as far as θ* is not its minimum.
    """

    __repr__ = safely(lambda found: _show(found))

    merged: PyTree
    solution: PyTree
    gradients: dict[str, PyTree]
    contributions: dict[str, PyTree]
    correction: PyTree
    residual: PyTree

    @property
    def error(self) -> PyTree:
        """θ* − θ̄."""
        return _subtract(self.solution, self.merged)

    @property
    def lengths(self) -> dict[str, Float[Array, ""]]:
        """The Euclidean length of every task's contribution."""
        return {name: jnp.sqrt(tree_dot(c, c)) for name, c in self.contributions.items()}

    def predicted_change(self, test: AbstractTarget) -> Float[Array, ""]:
        r"""$\nabla\ell_\text{Test}(\bar\theta)^\top(\theta^* - \bar\theta)$, about the test loss of
        θ* less that of θ̄; its error is O(‖θ* − θ̄‖²). From GM §3 (unnumbered)."""
        return tree_dot(self._test_gradient(test), self.error)

    def predicted_change_by_task(self, test: AbstractTarget) -> dict[str, Float[Array, ""]]:
        """The same for every task's contribution alone: which task's mismatch costs test loss."""
        gradient = self._test_gradient(test)
        return {name: tree_dot(gradient, c) for name, c in self.contributions.items()}

    def _test_gradient(self, test: AbstractTarget) -> PyTree:
        require_target(test)
        test.check(self.merged)
        return test.value_and_gradient(self.merged)[1]


def _show(found: Mismatch) -> str:
    parts = {f"task {name}": c for name, c in found.contributions.items()}
    parts |= {"correction": found.correction, "residual": found.residual, "all": found.error}
    lengths = [
        np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(c))) for c in parts.values()
    ]
    title = "Mismatch: what separates a merged model from the joint solution, by task"
    return f"{title}\n{table({'length': lengths}, list(parts), None)}"


def mismatch(
    losses: Sequence[Any] | Mapping[str, Any],
    posteriors: Sequence[Any] | Mapping[str, Any],
    weights: Any,
    prior: AbstractGaussian | None = None,
    *,
    solution: PyTree | None = None,
    merged: PyTree | None = None,
) -> Mismatch:
    r"""The error of a merged model, divided among its tasks,
    $\theta^* - \hat\theta = -\sum_t\alpha_t\bar H^{-1}[\nabla\ell_t(\theta^*)
    - \nabla\hat\ell_t(\theta^*)]$ with $\hat\ell_t = -\log q_t/p_0$.

    - `losses`: ℓ_t, T targets. Or Gaussian posteriors q̃_t, **with** the prior in them, whose
      surrogates stand for the losses: then no data are read. Laplace posteriors there are GM-9
      plugged into GM-8; `prior * expand(target, merged)` is the sharper estimate of one gradient
      and curvature per task at the merged model.
    - `posteriors`: q_t, the T Gaussians that were merged, **with** the prior in them. Parameters
      θ_t instead stand for N(θ_t, H_0⁻¹), which is task arithmetic.
    - `weights`: α, shape (T,), or a mapping from the same names.
    - `prior`: p_0 = N(θ_0, H_0⁻¹), or `None` for a flat one.
    - `solution`: θ*, minimiser of Σα_tℓ_t(θ) + ½‖θ−θ_0‖²_{H_0}. `None` only where `losses` are
      posteriors, whose joint solution has a closed form.
    - `merged`: θ̄, any other merged model than the mode of Π q_t^{α_t}.

    **Returns** a `Mismatch`. What it says of the error is exact for any smooth losses.

    **Raises** `ValueError` for targets without a solution, improper products, or other parameters.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> p0 = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    >>> def loss(theta, y):
    ...     return jnp.cosh(theta - y)
    >>> tasks = {"a": bm.Target(loss, jnp.array([0.5])), "b": bm.Target(loss, jnp.array([2.0]))}
    >>> trained = {name: bm.find_mode(task, p0).params for name, task in tasks.items()}
    >>> joint = bm.find_mode(bm.JointTarget(tasks, [1.0, 1.0]), p0).params
    >>> found = bm.mismatch(tasks, trained, [1.0, 1.0], p0, solution=joint)
    >>> {name: round(float(c), 3) for name, c in found.contributions.items()}
    {'a': -0.669, 'b': 0.255}

    ```

    Source: GM equations 4, 8 and 9; GMA equations 1 and 2.
    """
    if not as_prior(prior).is_closed:
        raise TypeError(
            "prior is exact, and the error of a merge is divided among tasks for Gaussian priors. "
            "`diagnose` and `refine` take any."
        )
    names, qs = named(posteriors, "posteriors")
    factors = [_as_posterior(q, prior, name) for name, q in zip(names, qs, strict=True)]
    alpha = as_weights(weights, names)
    if alpha.ndim != 1:
        raise ValueError(f"weights have shape {alpha.shape}: the mismatch is that of one merge.")
    functions = matched(losses, names, "losses")
    product = merge(factors, alpha, prior)
    product = require(
        product, product.is_proper(), "the merged posterior is improper: it has no mode."
    )
    mode = product.mode()
    if solution is None:
        solution = _closed_form(functions, alpha, prior)
    solution = _point(solution, product, "solution")
    merged = mode if merged is None else _point(merged, product, "merged")

    gradients, contributions = {}, {}
    stationarity = _scale(product.linear, 0.0)
    if prior is not None:
        stationarity = prior.multiply(_subtract(solution, prior.mode()))
    for name, loss, q, weight in zip(names, functions, factors, alpha, strict=True):
        true = _gradient(loss, solution, prior, name)
        true = require_finite(true, f"the gradient of losses['{name}'] at the solution")
        gradients[name] = _subtract(true, _gradient(q, solution, prior, name))
        contributions[name] = _scale(product.solve(gradients[name]), -weight)
        stationarity = jax.tree.map(jnp.add, stationarity, _scale(true, weight))
    return Mismatch(
        merged,
        solution,
        gradients,
        contributions,
        _subtract(mode, merged),
        product.solve(stationarity),
    )


def _as_posterior(q: Any, prior: AbstractGaussian | None, name: str) -> AbstractGaussian:
    """q_t itself, or N(θ_t, H_0⁻¹) for parameters θ_t."""
    if isinstance(q, AbstractGaussian):
        if q.batch_shape:
            raise ValueError(
                f"posteriors['{name}'] is a batch of shape {q.batch_shape}, and the mismatch is "
                "that of one merge of single posteriors."
            )
        return q
    if prior is None:
        raise ValueError(
            f"posteriors['{name}'] are parameters, which stand for N(θ_t, H_0⁻¹), and there is no "
            "H_0: pass `prior`, or Gaussian posteriors."
        )
    params, layout = as_arrays(q, f"posteriors['{name}']")
    prior.layout.require_same(layout, f"prior and posteriors['{name}']")
    params = require_finite(params, f"posteriors['{name}']")
    return eqx.tree_at(lambda p: p.linear, prior, prior.multiply(params))


def _closed_form(losses: list[Any], alpha: Array, prior: AbstractGaussian | None) -> PyTree:
    if not all(isinstance(loss, AbstractGaussian) for loss in losses):
        raise ValueError(
            "the joint solution of targets is not known: pass `solution`, e.g. "
            "`find_mode(JointTarget(targets, weights), prior).params`. For an estimate without "
            "joint training pass Gaussian posteriors as `losses`."
        )
    return combined(losses, alpha, prior).mode()


def _point(params: PyTree, product: AbstractGaussian, what: str) -> PyTree:
    params, layout = as_arrays(params, what)
    product.layout.require_same(layout, f"posteriors and {what}")
    return require_finite(params, what)


def _gradient(loss: Any, theta: PyTree, prior: AbstractGaussian | None, name: str) -> PyTree:
    """∇ℓ_t(θ), or for a posterior ∇ℓ̂_t(θ) = −∇log q_t/p_0 = (Λ_t − H_0)θ − (η_t − η_0)."""
    if isinstance(loss, AbstractGaussian):
        factor = loss if prior is None else loss / prior
        return _subtract(factor.multiply(theta), factor.linear)
    if not isinstance(loss, AbstractTarget):
        raise TypeError(
            f"losses['{name}'] is a {type(loss).__name__}, and it must be a `Target` or a Gaussian "
            "posterior."
        )
    loss.check(theta)
    return loss.value_and_gradient(theta)[1]


def _subtract(x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, x, y)


def _scale(tree: PyTree, factor: Any) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, tree)
