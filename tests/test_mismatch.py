"""Gradient mismatch: identities, estimates and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bayesmerge as bm

seeds = st.integers(0, 2**32 - 1)


def log_sum_exp(theta, batch):
    """FP Fig. 2: a convex loss that is not quadratic."""
    a, b = batch
    return jax.nn.logsumexp(a @ theta["w"] + b, axis=-1)


def losses(rng, num_tasks=3, size=2):
    return {
        f"task {t}": bm.Target(
            log_sum_exp,
            (jnp.asarray(rng.normal(size=(6, 4, size))), jnp.asarray(rng.normal(size=(6, 4)))),
        )
        for t in range(num_tasks)
    }


def total(tree):
    return jax.tree.map(lambda *x: sum(x), *tree)


def close(x, y, rtol=1e-11, atol=1e-13):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), x, y)


@given(seed=seeds)
@pytest.mark.parametrize("form", ["parameters", "isotropic", "diagonal", "full", "elsewhere"])
def test_the_parts_sum_to_the_error_wherever_the_solution_is(form, seed):
    rng = np.random.default_rng(seed)
    tasks, alpha = losses(rng), jnp.asarray(rng.uniform(0.2, 1.5, 3))
    point = lambda: {"w": jnp.asarray(rng.normal(size=2))}  # noqa: E731
    prior = bm.DiagonalGaussian.from_mean_precision(point(), {"w": jnp.array([1.0, 3.0])})
    structure = "full" if form == "elsewhere" else form
    posteriors = {name: point() for name in tasks}
    if form != "parameters":
        posteriors = {
            name: prior * bm.expand(task, posteriors[name], structure=structure)
            for name, task in tasks.items()
        }
    merged = point() if form == "elsewhere" else None
    found = bm.mismatch(tasks, posteriors, alpha, prior, solution=point(), merged=merged)
    close(total([*found.contributions.values(), found.correction, found.residual]), found.error)


def cubic_tasks(rng):
    tasks = losses(rng)
    prior = bm.IsotropicGaussian.from_mean_precision({"w": jnp.zeros(2)}, 2.0)
    alpha = jnp.array([1.0, 0.5, 1.5])
    joint = bm.find_mode(bm.JointTarget(tasks, alpha), prior, method="newton").params
    return tasks, prior, alpha, joint


def test_at_the_joint_solution_nothing_is_left_over():
    tasks, prior, alpha, joint = cubic_tasks(np.random.default_rng(0))
    qs = {name: bm.laplace(task, prior) for name, task in tasks.items()}
    found = bm.mismatch(tasks, qs, alpha, prior, solution=joint)
    close(found.residual, {"w": jnp.zeros(2)}, atol=1e-12)
    close(found.correction, {"w": jnp.zeros(2)}, atol=0)
    close(total(list(found.contributions.values())), found.error, atol=1e-12)
    assert set(found.lengths) == set(tasks)


def test_estimates_without_joint_training():
    """GM-9 into GM-8 is GM-10 less task arithmetic; expanding at the merged model is a Newton step
    from there, closer by far."""
    tasks, prior, alpha, joint = cubic_tasks(np.random.default_rng(0))
    qs = {name: bm.laplace(task, prior) for name, task in tasks.items()}
    trained = {name: q.mode() for name, q in qs.items()}
    estimate = bm.mismatch(qs, trained, alpha, prior)
    close(estimate.solution, bm.merge(qs, alpha, prior).mode())
    close(total(list(estimate.contributions.values())), estimate.error)

    merged = bm.merge(qs, alpha, prior).mode()
    again = {name: prior * bm.expand(task, merged) for name, task in tasks.items()}
    sharper = bm.mismatch(again, qs, alpha, prior)
    true = np.linalg.norm(joint["w"] - merged["w"])
    assert np.linalg.norm(joint["w"] - sharper.solution["w"]) < 0.05 * true


def test_predicted_change_of_a_test_loss_is_first_order():
    rng = np.random.default_rng(3)
    tasks, prior, alpha, joint = cubic_tasks(rng)
    test = losses(rng, 1)["task 0"]
    trained = {name: bm.find_mode(t, prior, method="newton").params for name, t in tasks.items()}
    found = bm.mismatch(tasks, trained, alpha, prior, solution=joint)
    by_task = found.predicted_change_by_task(test)
    np.testing.assert_allclose(sum(by_task.values()), found.predicted_change(test), rtol=1e-9)
    errors = []
    for h in (1.0, 0.5, 0.25, 0.125):
        near = jax.tree.map(lambda j, m, h=h: j + h * (m - j), joint, found.merged)
        part = bm.mismatch(tasks, trained, alpha, prior, solution=joint, merged=near)
        change = test.total(joint) - test.total(near)
        errors.append(abs(change - part.predicted_change(test)))
    orders = np.diff(np.log2(errors[::-1]))
    np.testing.assert_allclose(orders[:2], 2, atol=0.15)


def test_a_flat_prior_is_fisher_averaging():
    rng = np.random.default_rng(4)
    tasks = losses(rng)
    thetas = {name: {"w": jnp.asarray(rng.normal(size=2))} for name in tasks}
    qs = {name: bm.expand(task, thetas[name]) for name, task in tasks.items()}
    joint = bm.find_mode(
        bm.JointTarget(tasks, [1.0] * 3), start={"w": jnp.ones(2)}, method="newton"
    )
    found = bm.mismatch(tasks, qs, [1.0] * 3, solution=joint.params)
    close(total(list(found.contributions.values())), found.error, rtol=1e-8, atol=1e-10)


def test_bad_input_is_named():
    tasks, prior, alpha, joint = cubic_tasks(np.random.default_rng(0))
    thetas = dict.fromkeys(tasks, joint)
    with pytest.raises(ValueError, match="pass `solution`"):
        bm.mismatch(tasks, thetas, alpha, prior)
    with pytest.raises(ValueError, match="no H_0"):
        bm.mismatch(tasks, thetas, alpha, solution=joint)
    with pytest.raises(ValueError, match="must have the same parameters"):
        bm.mismatch(tasks, thetas, alpha, prior, solution={"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match="must name the same tasks"):
        bm.mismatch({"x": tasks["task 0"]}, thetas, alpha, prior, solution=joint)
    with pytest.raises(ValueError, match="one merge"):
        bm.mismatch(tasks, thetas, jnp.stack([alpha, alpha]), prior, solution=joint)
    with pytest.raises(TypeError, match="must be a `Target`"):
        bm.mismatch(dict.fromkeys(tasks, log_sum_exp), thetas, alpha, prior, solution=joint)
    with pytest.raises(ValueError, match="solution must be finite"):
        bm.mismatch(tasks, thetas, alpha, prior, solution={"w": jnp.array([0.0, jnp.nan])})
