"""Model Merging by Gradient Matching: equations 1 to 10, and §3's estimate of a test loss."""

import jax
import jax.numpy as jnp
import numpy as np

import bayesmerge as bm
from ledger.book import between, differs, equal, equation, order, stationary
from ledger.problems import (
    ALL,
    NONLINEAR,
    TITLES,
    base_model,
    data,
    fine_tuned,
    from_scratch,
    half_square,
    target,
)


def solve(H, v):
    return np.linalg.solve(H, v)


@equation("GM-1", r"\theta_t = \arg\min_\theta \ell_t(\theta) + \tfrac12\|\theta\|^2")
def gm_1():
    """Training on one task. `find_mode` with the prior N(0, I) finds the minimum: the gradient of
    the printed objective vanishes there, and no nearby point is lower."""
    for problem in ALL:
        s = from_scratch(problem)
        rng = np.random.default_rng(0)
        for t, loss in enumerate(s.losses):
            objective = jax.jit(lambda x, loss=loss: loss.total(x) + 0.5 * x @ x)
            theta = s.thetas[t]
            yield stationary(f"gradient at θ_{t + 1}", s.title, objective, theta)
            rises = [
                objective(theta + 1e-3 * rng.normal(size=theta.size)) - objective(theta)
                for _ in range(20)
            ]
            yield between(f"least rise around θ_{t + 1}", s.title, min(rises), 1e-12, np.inf, "> 0")


@equation(
    "GM-2",
    r"\theta_{1+2} = \arg\min_\theta \alpha_1\ell_1(\theta) + \alpha_2\ell_2(\theta)"
    r" + \tfrac12\|\theta\|^2",
)
def gm_2():
    """Training on both tasks at once, with weights: the target that merging wants to hit. (Printed
    with ℓ_2(θ_1); see misprint 1.) It is the mode of a `JointTarget`."""
    for problem in ALL:
        s = from_scratch(problem)
        objective = lambda x, s=s: (  # noqa: E731
            s.alpha[0] * s.losses[0].total(x) + s.alpha[1] * s.losses[1].total(x) + 0.5 * x @ x
        )
        yield stationary("gradient at θ_1+2", s.title, objective, s.joint)


@equation(
    "GM-3",
    r"\theta_t = -\nabla\ell_t(\theta_t), \qquad"
    r" \theta_{1+2} = -\sum_t\alpha_t\nabla\ell_t(\theta_{1+2})",
)
def gm_3():
    """The conditions of stationarity of GM-1 and GM-2: parameters are minus the gradients that the
    regulariser balances."""
    for problem in ALL:
        s = from_scratch(problem)
        for t in range(2):
            yield equal(f"θ_{t + 1}", s.title, -s.gradient(t, s.thetas[t]), s.thetas[t])
        pull = sum(a * s.gradient(t, s.joint) for t, a in enumerate(s.alpha))
        yield equal("θ_1+2", s.title, -pull, s.joint)


@equation(
    "GM-4",
    r"\theta_{1+2} - \sum_t\alpha_t\theta_t ="
    r" -\sum_t\alpha_t[\nabla\ell_t(\theta_{1+2}) - \nabla\ell_t(\theta_t)]",
)
def gm_4():
    """The error of averaging is the weighted mismatch of gradients: an identity for every smooth
    loss, however far from quadratic. `mismatch` gives both sides."""
    for problem in ALL:
        s = from_scratch(problem)
        left = s.joint - s.alpha @ np.stack(s.thetas)
        gaps = [s.gradient(t, s.joint) - s.gradient(t, s.thetas[t]) for t in range(2)]
        yield equal("both sides", s.title, -s.alpha @ np.stack(gaps), left)
        found = bm.mismatch(
            s.losses,
            list(map(jnp.asarray, s.thetas)),
            s.alpha,
            s.prior,
            solution=jnp.asarray(s.joint),
        )
        yield equal(
            "`mismatch`: the tasks' shares", s.title, sum(found.contributions.values()), left
        )


@equation(
    "GM-§3",
    r"\ell_{\mathrm{Test}}(\theta_{1+2}) - \ell_{\mathrm{Test}}(\bar\theta) \approx"
    r" \nabla\ell_{\mathrm{Test}}(\bar\theta)^\top(\theta_{1+2} - \bar\theta)",
)
def gm_3_test_loss():
    """Unnumbered: what the error of a merged model costs in test loss, to first order. Halving the
    distance quarters what is left out."""
    for problem in ALL:
        s = from_scratch(problem)
        test = target(problem, *data(problem)[0])
        average = s.alpha @ np.stack(s.thetas)

        def remainder(h, s=s, test=test, average=average):
            near = jnp.asarray(s.joint + h * (average - s.joint))
            found = bm.mismatch(
                s.losses,
                list(map(jnp.asarray, s.thetas)),
                s.alpha,
                s.prior,
                solution=jnp.asarray(s.joint),
                merged=near,
            )
            change = test.total(jnp.asarray(s.joint)) - test.total(near)
            return abs(float(change - found.predicted_change(test)))

        yield order("order of the remainder", s.title, remainder, 2)


@equation(
    "GM-5", r"\theta_0 = \arg\min_\theta \ell_{\mathrm{LLM}}(\theta) + \tfrac12\delta\|\theta\|^2"
)
def gm_5():
    """The base model that is fine-tuned: θ_LLM in the paper, θ_0 here."""
    for problem in ALL:
        theta, loss, _ = base_model(problem)
        objective = lambda x, loss=loss: loss.total(x) + 0.25 * x @ x  # noqa: E731
        yield stationary("gradient at θ_0, δ = ½", TITLES[problem], objective, theta)


@equation(
    "GM-6",
    r"\theta_t = \arg\min_\theta \ell_t(\theta) + \tfrac12\|\theta - \theta_0\|^2_{H_0}",
)
def gm_6():
    """Fine-tuning on one task, held near the base model by H_0."""
    for problem in ALL:
        s = fine_tuned(problem)
        for t, loss in enumerate(s.losses):
            objective = lambda x, s=s, loss=loss: (  # noqa: E731
                loss.total(x) + half_square(x - s.base, s.H0)
            )
            pull = s.H0 @ (s.thetas[t] - s.base)
            yield stationary(f"gradient at θ_{t + 1}", s.title, objective, s.thetas[t], pull)


@equation(
    "GM-7",
    r"\theta_{1:T} = \arg\min_\theta \sum_t\alpha_t\ell_t(\theta)"
    r" + \tfrac12\|\theta - \theta_0\|^2_{H_0}",
)
def gm_7():
    """Fine-tuning on all tasks at once: what task arithmetic and GM-10 estimate."""
    for problem in ALL:
        s = fine_tuned(problem)
        objective = lambda x, s=s: (  # noqa: E731
            sum(a * loss.total(x) for a, loss in zip(s.alpha, s.losses, strict=True))
            + half_square(x - s.base, s.H0)
        )
        pull = s.H0 @ (s.joint - s.base)
        yield stationary("gradient at θ_1:T", s.title, objective, s.joint, pull)


def task_arithmetic(s):
    return s.base + s.alpha @ (np.stack(s.thetas) - s.base)


@equation(
    "GM-8",
    r"\theta_{1:T} = \theta_0 + \sum_t\alpha_t(\theta_t - \theta_0)"
    r" - \sum_t\alpha_t H_0^{-1}[\nabla\ell_t(\theta_{1:T}) - \nabla\ell_t(\theta_t)]",
)
def gm_8():
    """The same identity from a base model: task arithmetic, and its error. Σα = 1.8, so γ is not
    zero."""
    for problem in ALL:
        s = fine_tuned(problem)
        gaps = [s.gradient(t, s.joint) - s.gradient(t, s.thetas[t]) for t in range(2)]
        error = s.joint - task_arithmetic(s)
        yield equal("both sides", s.title, -solve(s.H0, s.alpha @ np.stack(gaps)), error)
        found = bm.mismatch(
            s.losses,
            list(map(jnp.asarray, s.thetas)),
            s.alpha,
            s.prior,
            solution=jnp.asarray(s.joint),
        )
        for t, name in enumerate(found.contributions):
            yield equal(
                f"`mismatch`: share of task {t + 1}",
                s.title,
                found.contributions[name],
                -s.alpha[t] * solve(s.H0, gaps[t]),
            )
        scheme = bm.mismatch(
            s.losses, s.posteriors, s.alpha, s.prior, solution=jnp.asarray(s.joint)
        )
        merged = bm.merge(s.posteriors, s.alpha, s.prior).mode()
        if problem in NONLINEAR:
            yield equal(
                "`mismatch` of GM-10: the tasks' shares",
                s.title,
                sum(scheme.contributions.values()),
                s.joint - np.asarray(merged),
                within=1e-9,
            )


@equation("GM-9", r"\nabla\ell_t(\theta) \approx \nabla\ell_t(\theta_t) + H_t(\theta - \theta_t)")
def gm_9():
    """Taylor's approximation of a task's gradient: the one approximation of the paper. Exact for
    least squares; otherwise its error falls with the square of the distance. `expand` is this
    approximation as a Gaussian factor."""
    for problem in ALL:
        s = fine_tuned(problem)
        loss, theta = s.losses[0], s.thetas[0]
        factor = bm.expand(loss, jnp.asarray(theta), curvature="hessian")
        direction = s.joint - theta

        def remainder(h, s=s, theta=theta, factor=factor, direction=direction):
            at = theta + 4 * h * direction
            taylor = s.gradient(0, theta) + s.hessian(0, theta) @ (at - theta)
            same = np.asarray(factor.multiply(jnp.asarray(at)) - factor.linear)
            np.testing.assert_allclose(same, taylor, rtol=1e-8, atol=1e-9)
            return np.linalg.norm(s.gradient(0, at) - taylor)

        if problem in NONLINEAR:
            yield order("order of the remainder", s.title, remainder, 2)
        else:
            yield equal(
                "remainder at distance 1", s.title, remainder(0.25), 0.0, scale=s.gradient(0, theta)
            )


@equation(
    "GM-10",
    r"\hat\theta = \theta_0 + \sum_t\alpha_t\bar H^{-1}(H_0 + H_t)(\theta_t - \theta_0),"
    r" \qquad \bar H = H_0 + \sum_t\alpha_t H_t",
)
def gm_10():
    """Gradient matching. Exact for least squares. Otherwise one order better than task arithmetic:
    as H_0 stiffens and the fine-tuned models move half as far, the error of task arithmetic falls
    by 4 and that of GM-10 by 8. Without H_t it is task arithmetic, without H_0 Fisher averaging."""
    for problem in ALL:
        s = fine_tuned(problem)
        H = [s.hessian(t, s.thetas[t]) for t in range(2)]
        H_bar = s.H0 + s.alpha[0] * H[0] + s.alpha[1] * H[1]
        pulls = [
            a * (s.H0 + h) @ (theta - s.base)
            for a, h, theta in zip(s.alpha, H, s.thetas, strict=True)
        ]
        printed = s.base + solve(H_bar, sum(pulls))
        thetas = list(map(jnp.asarray, s.thetas))
        scheme = bm.schemes.gradient_matching(thetas, H, s.alpha, jnp.asarray(s.base), s.H0)
        yield equal("`gradient_matching` as printed", s.title, scheme.mode(), printed)
        yield equal(
            "p_0^γ Π q_t^α as printed",
            s.title,
            bm.merge(s.posteriors, s.alpha, s.prior).mode(),
            printed,
        )
        none = [0 * h for h in H]
        flat = bm.schemes.gradient_matching(thetas, none, s.alpha, jnp.asarray(s.base), s.H0)
        yield equal("H_t = 0: task arithmetic", s.title, flat.mode(), task_arithmetic(s))
        if problem == "least squares":
            yield equal("the joint solution", s.title, printed, s.joint)
            continue
        yield order(
            "order of GM-10's error",
            s.title,
            lambda h, p=problem: _merging_error(p, h),
            3,
            2.0**-12,
        )
        yield order(
            "order of task arithmetic's error",
            s.title,
            lambda h, p=problem: np.linalg.norm(
                fine_tuned(p, 1 / h).joint - task_arithmetic(fine_tuned(p, 1 / h))
            ),
            2,
            2.0**-12,
        )
    s = fine_tuned("logistic")
    H = [s.hessian(t, s.thetas[t]) + 1e-3 * np.eye(s.base.size) for t in range(2)]
    thetas, base = list(map(jnp.asarray, s.thetas)), jnp.asarray(s.base)
    without = bm.schemes.gradient_matching(thetas, H, s.alpha, base, 0 * s.H0).mode()
    fisher = bm.schemes.fisher_average(thetas, H, s.alpha).mode()
    pulls = sum(a * h @ theta for a, h, theta in zip(s.alpha, H, s.thetas, strict=True))
    printed = solve(s.alpha[0] * H[0] + s.alpha[1] * H[1], pulls)
    yield equal("H_0 = 0: GM-10 is Fisher averaging", s.title, without, printed)
    yield equal("`fisher_average`", s.title, fisher, printed)


def _merging_error(problem, h):
    s = fine_tuned(problem, 1 / h)
    return np.linalg.norm(s.joint - np.asarray(bm.merge(s.posteriors, s.alpha, s.prior).mode()))


@equation(
    "GM-Fig. 2", r"\hat\theta(s\,\alpha) \text{ as the scale } s \text{ of } \alpha \text{ grows}"
)
def gm_figure_2():
    """Robustness to the scale of the weights. As s grows task arithmetic runs away in a straight
    line, and its joint loss rises above that of the base model long before that of GM-10, which
    slows down as Σα_tH_t outweighs H_0. It too ends above, far beyond any weight in use; at small
    scales the two are alike. H_t is the GGN, which cannot be indefinite. (Tutorial 4 draws it.)"""
    for problem in NONLINEAR:
        s = fine_tuned(problem)
        scale, thetas = 6.0, list(map(jnp.asarray, s.thetas))
        loss = bm.JointTarget(s.losses, [1.0, 1.0])
        alpha = scale * np.ones(2)
        H = [bm.curvature(q, x, "ggn") for q, x in zip(s.losses, thetas, strict=True)]
        straight = s.base + alpha @ (np.stack(s.thetas) - s.base)
        matched = bm.schemes.gradient_matching(thetas, H, alpha, jnp.asarray(s.base), s.H0).mode()
        base = float(loss.total(jnp.asarray(s.base)))
        yield between(
            "loss of task arithmetic at s = 6, over that of the base",
            s.title,
            float(loss.total(jnp.asarray(straight))) / base,
            1.0,
            np.inf,
            "> 1",
        )
        yield between(
            "loss of GM-10 at s = 6, over that of the base",
            s.title,
            float(loss.total(matched)) / base,
            0.0,
            1.0,
            "< 1",
        )
    yield differs("GM-10 and task arithmetic differ", s.title, straight, np.asarray(matched))
