"""The appendix of GM: derivations, data removal, and Bayes' rule."""

import functools

import jax.numpy as jnp
import numpy as np
import sympy as sp

import bayesmerge as bm
from ledger.book import between, differs, equal, equation, order, stationary, symbolic
from ledger.gm import solve, task_arithmetic
from ledger.problems import (
    ALL,
    NONLINEAR,
    TITLES,
    base_model,
    data,
    fine_tuned,
    half_square,
    minimise,
    target,
)


def mismatches(s):
    return [s.gradient(t, s.joint) - s.gradient(t, s.thetas[t]) for t in range(2)]


@equation(
    "GMA-1",
    r"H_0(\theta_{1:T} - \theta_0) - \sum_t\alpha_t H_0(\theta_t - \theta_0) ="
    r" -\sum_t\alpha_t[\nabla\ell_t(\theta_{1:T}) - \nabla\ell_t(\theta_t)]",
)
def gma_1():
    """GM-8 before the multiplication by the inverse of H_0: stationarity of the joint solution less
    that of the tasks. An identity."""
    for problem in ALL:
        s = fine_tuned(problem)
        left = s.H0 @ (s.joint - task_arithmetic(s))
        yield equal("both sides", s.title, -s.alpha @ np.stack(mismatches(s)), left)


@equation(
    "GMA-2",
    r"\theta_{1:T} = \theta_{\mathrm{TA}}"
    r" - \sum_t\alpha_t H_0^{-1}[\nabla\ell_t(\theta_{1:T}) - \nabla\ell_t(\theta_t)]",
)
def gma_2():
    """GM-8: multiplied by the inverse of H_0."""
    for problem in ALL:
        s = fine_tuned(problem)
        right = task_arithmetic(s) - solve(s.H0, s.alpha @ np.stack(mismatches(s)))
        yield equal("both sides", s.title, right, s.joint)


def symbols():
    """Two tasks, two parameters, symmetric H_0 and H_t, with all entries free."""
    theta, base = sp.Matrix(sp.symbols("x1 x2")), sp.Matrix(sp.symbols("b1 b2"))
    tasks = [sp.Matrix(sp.symbols(f"t{t}1 t{t}2")) for t in (1, 2)]
    H = []
    for name in ("A", "B", "C"):
        p, q, r = sp.symbols(f"{name}1:4")
        H.append(sp.Matrix([[p, q], [q, r]]))
    return theta, base, tasks, H[0], H[1:], sp.symbols("a1 a2")


def implicit_form(theta, base, tasks, H0, H, alpha):
    """GMA-3 as left less right."""
    right = sp.zeros(2, 1)
    for a, h, task in zip(alpha, H, tasks, strict=True):
        right += a * (task - base) - a * H0.inv() * h * (theta - task)
    return theta - base - right


@equation(
    "GMA-3",
    r"\theta_{1:T} - \theta_0 \approx \sum_t\alpha_t(\theta_t - \theta_0)"
    r" - \sum_t\alpha_t H_0^{-1}H_t(\theta_{1:T} - \theta_t)",
)
def gma_3():
    """GM-9 put into GM-8: linear in the unknown, which stands on both sides. The merged model
    solves it, exactly; the joint solution solves it only for least squares."""
    for problem in ALL:
        s = fine_tuned(problem)
        H = [s.hessian(t, s.thetas[t]) for t in range(2)]
        merged = np.asarray(bm.merge(s.posteriors, s.alpha, s.prior).mode())
        pulls = [
            a * solve(s.H0, h @ (merged - theta))
            for a, h, theta in zip(s.alpha, H, s.thetas, strict=True)
        ]
        yield equal("GM-10 solves it", s.title, task_arithmetic(s) - sum(pulls), merged)
        pulls = [
            a * solve(s.H0, h @ (s.joint - theta))
            for a, h, theta in zip(s.alpha, H, s.thetas, strict=True)
        ]
        sides = (task_arithmetic(s) - sum(pulls) - s.base, s.joint - s.base)
        if problem == "least squares":
            yield equal("so does θ_1:T", s.title, *sides)
        else:
            yield differs("θ_1:T does not", s.title, *sides)


@equation(
    "GMA-4",
    r"\theta_{1:T} - \theta_0 \approx \sum_t\alpha_t(\theta_t - \theta_0)"
    r" - \sum_t\alpha_t H_0^{-1}[H_t(\theta_{1:T} - \theta_0) - H_t(\theta_t - \theta_0)]",
)
def gma_4():
    """The base model added and subtracted: the same equation."""
    theta, base, tasks, H0, H, alpha = symbols()
    right = sp.zeros(2, 1)
    for a, h, task in zip(alpha, H, tasks, strict=True):
        right += a * (task - base) - a * H0.inv() * (h * (theta - base) - h * (task - base))
    yield symbolic(
        "GMA-3 less GMA-4", implicit_form(theta, base, tasks, H0, H, alpha) - (theta - base - right)
    )


@equation(
    "GMA-5",
    r"(H_0 + \sum_t\alpha_t H_t)(\theta_{1:T} - \theta_0) \approx"
    r" \sum_t\alpha_t(H_0 + H_t)(\theta_t - \theta_0)",
)
def gma_5():
    """Multiplied by H_0 and collected: unknowns on the left."""
    theta, base, tasks, H0, H, alpha = symbols()
    collected = H0 * (theta - base)
    for a, h, task in zip(alpha, H, tasks, strict=True):
        collected += a * h * (theta - base) - a * (H0 + h) * (task - base)
    yield symbolic(
        "H_0 times GMA-3, less GMA-5",
        H0 * implicit_form(theta, base, tasks, H0, H, alpha) - collected,
    )


@equation(
    "GMA-6",
    r"\hat\theta_{1:T} = \theta_0"
    r" + \sum_t\alpha_t\bar H^{-1}(H_0 + H_t)(\theta_t - \theta_0)",
)
def gma_6():
    """GM-10, the solution of GMA-3."""
    _, base, tasks, H0, H, alpha = symbols()
    H_bar = H0 + alpha[0] * H[0] + alpha[1] * H[1]
    solution = base
    for a, h, task in zip(alpha, H, tasks, strict=True):
        solution = solution + a * H_bar.inv() * (H0 + h) * (task - base)
    yield symbolic("GMA-6 put into GMA-3", H0 * implicit_form(solution, base, tasks, H0, H, alpha))


class Removal:
    """θ_0 on all the data, where task t counts α times; θ_∖t without it; θ_t fine-tuned on it."""

    def __init__(self, problem: str, alpha: float = 1.0, stiffness: float = 1.0):
        kept, _, gone = data(problem)
        self.title, self.alpha, self.delta = TITLES[problem], alpha, 0.5
        self.kept, self.gone = target(problem, *kept), target(problem, *gone)
        self.without, _, self.H0 = base_model(problem, self.delta)
        self.H0 = stiffness * self.H0
        self.size = self.without.size
        prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(self.size), self.delta)
        everything = bm.JointTarget([self.kept, self.gone], [1.0, alpha])
        self.base = np.asarray(minimise(everything, prior, jnp.asarray(self.without)))
        around = bm.FullGaussian.from_mean_precision(jnp.asarray(self.base), jnp.asarray(self.H0))
        self.tuned = np.asarray(minimise(self.gone, around, jnp.asarray(self.base)))
        self.Ht = np.asarray(bm.curvature(self.gone, jnp.asarray(self.tuned), "hessian"))
        H = bm.curvature(self.kept, jnp.asarray(self.base), "hessian")
        self.H_without = self.delta * np.eye(self.size) + np.asarray(H)

    def gradient(self, loss, theta):
        return np.asarray(loss.value_and_gradient(jnp.asarray(theta))[1])

    @property
    def printed(self):
        """GMA-13."""
        step = solve(self.H_without, (self.H0 + self.Ht) @ (self.tuned - self.base))
        return self.base - self.alpha * step


@functools.cache
def removal(problem: str, alpha: float = 1.0, stiffness: float = 1.0) -> Removal:
    return Removal(problem, alpha, stiffness)


@equation(
    "GMA-7",
    r"\theta_0 = \arg\min_\theta \ell_{\mathrm{LLM}}(\theta) + \tfrac12\delta\|\theta\|^2",
)
def gma_7():
    """The model trained on all data, from which data are to be removed."""
    for problem in ALL:
        r = removal(problem)
        loss = lambda x, r=r: r.kept.total(x) + r.gone.total(x) + 0.25 * x @ x  # noqa: E731
        yield stationary("gradient at θ_0", r.title, loss, r.base)


@equation(
    "GMA-8",
    r"\theta_{\setminus t} = \arg\min_\theta \ell_{\setminus t}(\theta)"
    r" + \tfrac12\delta\|\theta\|^2",
)
def gma_8():
    """The model trained without task t, which removal estimates."""
    for problem in ALL:
        r = removal(problem)
        loss = lambda x, r=r: r.kept.total(x) + 0.25 * x @ x  # noqa: E731
        yield stationary("gradient at θ_∖t", r.title, loss, r.without)


@equation(
    "GMA-9",
    r"\ell_{\mathrm{LLM}}(\theta) = \ell_{\setminus t}(\theta) + \alpha_t\ell_t(\theta)",
)
def gma_9():
    """The loss on all data is that on the rest plus α_t times that of the task: sums over examples,
    not means."""
    for problem in ALL:
        r = removal(problem, 0.5)
        (x, y), _, (u, v) = data(problem)
        both = target(problem, np.concatenate([x, u]), np.concatenate([y, v]))
        for at in (r.base, r.without):
            joint = bm.JointTarget([r.kept, r.gone], [1.0, 1.0]).total(jnp.asarray(at))
            yield equal("α = 1: one sum", r.title, joint, both.total(jnp.asarray(at)))
            weighted = bm.JointTarget([r.kept, r.gone], [1.0, 0.5]).total(jnp.asarray(at))
            parts = r.kept.total(jnp.asarray(at)) + 0.5 * r.gone.total(jnp.asarray(at))
            yield equal("α = ½", r.title, weighted, parts)


@equation(
    "GMA-10",
    r"\delta\theta_0 = -\nabla\ell_{\setminus t}(\theta_0) - \alpha_t\nabla\ell_t(\theta_0),"
    r"\quad H_0(\theta_t - \theta_0) = -\nabla\ell_t(\theta_t),"
    r"\quad \delta\theta_{\setminus t} = -\nabla\ell_{\setminus t}(\theta_{\setminus t})",
)
def gma_10():
    """The three conditions of stationarity. (§1.1 prints the first without δ; see misprint 2.)"""
    for problem in ALL:
        r = removal(problem, 0.5)
        both = r.gradient(r.kept, r.base) + 0.5 * r.gradient(r.gone, r.base)
        yield equal("δθ_0", r.title, -both, r.delta * r.base)
        yield equal(
            "H_0(θ_t − θ_0)", r.title, -r.gradient(r.gone, r.tuned), r.H0 @ (r.tuned - r.base)
        )
        yield equal("δθ_∖t", r.title, -r.gradient(r.kept, r.without), r.delta * r.without)


@equation(
    "GMA-11",
    r"\delta(\theta_{\setminus t} - \theta_0) + \alpha_t H_0(\theta_t - \theta_0) ="
    r" -[\nabla\ell_{\setminus t}(\theta_{\setminus t}) - \nabla\ell_{\setminus t}(\theta_0)]"
    r" + \alpha_t[\nabla\ell_t(\theta_0) - \nabla\ell_t(\theta_t)]",
)
def gma_11():
    """The mismatch of removal: an identity for every smooth loss."""
    for problem in ALL:
        for alpha in (1.0, 0.5):
            r = removal(problem, alpha)
            left = r.delta * (r.without - r.base) + alpha * r.H0 @ (r.tuned - r.base)
            kept = r.gradient(r.kept, r.without) - r.gradient(r.kept, r.base)
            gone = r.gradient(r.gone, r.base) - r.gradient(r.gone, r.tuned)
            yield equal(f"both sides, α = {alpha:g}", r.title, -kept + alpha * gone, left)


@equation(
    "GMA-12", r"\nabla\ell_t(\theta_0) \approx \nabla\ell_t(\theta_t) + H_t(\theta_0 - \theta_t)"
)
def gma_12():
    """Taylor's approximation at the fine-tuned model. Exact for least squares, of second order
    otherwise: as H_0 stiffens, θ_t stays closer to θ_0 and the error falls with the square."""
    for problem in ALL:

        def remainder(h, problem=problem):
            r = removal(problem, 1.0, 1 / h)
            taylor = r.gradient(r.gone, r.tuned) + r.Ht @ (r.base - r.tuned)
            return np.linalg.norm(r.gradient(r.gone, r.base) - taylor)

        if problem in NONLINEAR:
            yield order("order of the remainder", TITLES[problem], remainder, 2)
        else:
            r = removal(problem)
            yield equal("remainder", r.title, remainder(1.0), 0.0, scale=r.gradient(r.gone, r.base))


@equation(
    "GMA-13",
    r"\hat\theta_{\setminus t} = \theta_0"
    r" - \alpha_t\bar H_{\setminus t}^{-1}(H_0 + H_t)(\theta_t - \theta_0),"
    r" \qquad \bar H_{\setminus t} = \delta I + \nabla^2\ell_{\setminus t}(\theta_0)",
)
def gma_13():
    """Removal of a task by fine-tuning on it. Exact for least squares. Otherwise second order: with
    half the weight to remove, and half the distance of fine-tuning, the error is a quarter."""
    for problem in ALL:
        r = removal(problem)
        scheme = bm.schemes.task_removal(
            jnp.asarray(r.tuned),
            r.Ht,
            jnp.asarray(r.base),
            tuning_precision=r.H0,
            remaining_precision=r.H_without,
        ).mode()
        yield equal("`task_removal` as printed", r.title, scheme, r.printed)
        if problem == "least squares":
            yield equal("refitted without the task", r.title, scheme, r.without)
            continue
        yield order(
            "order of the error",
            r.title,
            lambda h, p=problem: np.linalg.norm(
                removal(p, h, 1 / h).printed - removal(p, h, 1 / h).without
            ),
            2,
        )


@functools.cache
def regression(H0_seed: int | None = None):
    """X, y, and the rows to remove; H_0 at random."""
    (x, y), (u, v), _ = data("least squares")
    X, y, gone = np.concatenate([x, u]), np.concatenate([y, v]), np.arange(60)
    A = np.random.default_rng(H0_seed).normal(size=(11, 30))
    return X, y, gone, np.delete(X, gone, 0), np.delete(y, gone), A @ A.T


@equation(
    "GMA-14",
    r"\theta_{\setminus t} - \theta_0 ="
    r" \bar H_{\setminus t}^{-1}X_t^\top(X_t\theta_0 - y_t),"
    r" \qquad \bar H_{\setminus t} = X_{\setminus t}^\top X_{\setminus t} + \delta I",
)
def gma_14():
    """Cook (1977): removal from linear regression is exact. `leave_out` (with a factorisation, or
    conjugate gradients) and the quotient of posteriors are this formula."""
    X, y, gone, rest, y_rest, _ = regression()
    delta, eye = 0.5, np.eye(11)
    base = solve(X.T @ X + delta * eye, X.T @ y)
    without = solve(rest.T @ rest + delta * eye, rest.T @ y_rest)
    step = solve(rest.T @ rest + delta * eye, X[gone].T @ (X[gone] @ base - y[gone]))
    title = "diabetes, 60 of 294 rows"
    yield equal("printed", title, base + step, without)
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(11), delta)
    loss = target("least squares", X, y)
    for solver in ("cholesky", "cg"):
        found = bm.leave_out(loss, gone, prior, params=jnp.asarray(base), solver=solver)
        yield equal(f"`leave_out`, {solver}", title, found, without)
    q = bm.laplace(loss, prior)
    part = bm.expand(target("least squares", X[gone], y[gone]), q.mode())
    yield equal("`remove(q, expand(part, θ_0))`", title, bm.remove(q, part).mode(), without)


@equation(
    "GMA-15",
    r"\theta_t = \arg\min_\theta \tfrac12\|y_t - X_t\theta\|^2"
    r" + \tfrac12\|\theta - \theta_0\|^2_{H_0}",
)
def gma_15():
    """Fine-tuning on the rows to remove, in closed form:
    (H_0 + H_t)θ_t = H_0θ_0 + X_tᵀy_t."""
    X, y, gone, _, _, H0 = regression(1)
    base = solve(X.T @ X + 0.5 * np.eye(11), X.T @ y)
    loss = target("least squares", X[gone], y[gone])
    prior = bm.FullGaussian.from_mean_precision(jnp.asarray(base), jnp.asarray(H0))
    found = np.asarray(minimise(loss, prior))
    title = "diabetes, 60 of 294 rows"
    objective = lambda x: loss.total(x) + half_square(x - base, H0)  # noqa: E731
    yield stationary("gradient at θ_t", title, objective, found, H0 @ (found - base))
    Ht = X[gone].T @ X[gone]
    yield equal("closed form", title, found, solve(H0 + Ht, H0 @ base + X[gone].T @ y[gone]))


@equation(
    "GMA-16",
    r"\theta_0 - \bar H_{\setminus t}^{-1}(H_0 + H_t)(\theta_t - \theta_0) ="
    r" \theta_0 + \bar H_{\setminus t}^{-1}X_t^\top(X_t\theta_0 - y_t)",
)
def gma_16():
    """GMA-13 is GMA-14 whatever H_0 was: fine-tuning's regulariser cancels."""
    title = "diabetes, 60 of 294 rows"
    for seed in range(3):
        X, y, gone, rest, y_rest, H0 = regression(seed)
        base = solve(X.T @ X + 0.5 * np.eye(11), X.T @ y)
        Ht, H_rest = X[gone].T @ X[gone], rest.T @ rest + 0.5 * np.eye(11)
        tuned = solve(H0 + Ht, H0 @ base + X[gone].T @ y[gone])
        found = bm.schemes.task_removal(
            jnp.asarray(tuned),
            Ht,
            jnp.asarray(base),
            tuning_precision=H0,
            remaining_precision=H_rest,
        ).mode()
        yield equal(
            f"H_0 number {seed + 1}: refitted", title, found, solve(H_rest, rest.T @ y_rest)
        )
    base, y1, y2 = sp.Matrix(sp.symbols("b1 b2")), *sp.symbols("y1 y2")
    X = sp.Matrix(2, 2, sp.symbols("X1:5"))
    p, q, r = sp.symbols("A1:4")
    H0, y = sp.Matrix([[p, q], [q, r]]), sp.Matrix([y1, y2])
    tuned = (H0 + X.T * X).inv() * (H0 * base + X.T * y)
    yield symbolic("H_0 cancels", (H0 + X.T * X) * (tuned - base) + X.T * (X * base - y))


@equation(
    "GMA-§1.4",
    r"\hat\theta_{\setminus t} = \theta_0 + \bar H_{\setminus t}^{-1}\nabla\ell_t(\theta_0)",
)
def gma_1_4():
    """Unnumbered: Koh & Liang's form, GMA-11 without the second Taylor step. It needs no fine-tuned
    model, is one Newton step on the rest of the data, and is exact for least squares; otherwise
    its error is of second order in the weight that is removed."""
    for problem in ALL:

        def error(h, problem=problem):
            r = removal(problem, h)
            step = solve(r.H_without, h * r.gradient(r.gone, r.base))
            return np.linalg.norm(r.base + step - r.without)

        r = removal(problem)
        newton = r.base - solve(r.H_without, r.gradient(r.kept, r.base) + r.delta * r.base)
        step = solve(r.H_without, r.gradient(r.gone, r.base))
        yield equal("a Newton step on the rest", r.title, r.base + step, newton)
        q = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(r.size), r.delta)
        for loss in (r.kept, r.gone):
            q = q * bm.expand(loss, jnp.asarray(r.base), curvature="hessian")
        part = bm.expand(r.gone, jnp.asarray(r.base), curvature="hessian")
        yield equal(
            "`remove(q, expand(part, θ_0))`", r.title, bm.remove(q, part).mode(), r.base + step
        )
        if problem == "least squares":
            yield equal("refitted", r.title, r.base + step, r.without)
        else:
            yield order("order of the error", r.title, error, 2)


@equation(
    "GMA-17",
    r"\theta_{1:T} = \theta_{\mathrm{TA}}"
    r" - \sum_t\alpha_t H_0^{-1}[\nabla\ell_t(\theta_{1:T}) - \nabla\ell_t(\theta_t)]",
)
def gma_17():
    """GMA-2 again, read as a condition on the posterior over all data: the gradient of its
    log-density, −H_0(θ − θ_0) − Σα_t∇ℓ_t(θ), vanishes there."""
    for problem in ALL:
        s = fine_tuned(problem)
        gaps = s.alpha @ np.stack(mismatches(s))
        residual = s.joint - task_arithmetic(s) + solve(s.H0, gaps)
        score = -s.H0 @ (s.joint - s.base) - sum(
            a * s.gradient(t, s.joint) for t, a in enumerate(s.alpha)
        )
        away = s.joint + 0.1 * np.ones(s.joint.size)
        gap = [s.gradient(t, away) - s.gradient(t, s.thetas[t]) for t in range(2)]
        elsewhere = away - task_arithmetic(s) + solve(s.H0, s.alpha @ np.stack(gap))
        score_there = -s.H0 @ (away - s.base) - sum(
            a * s.gradient(t, away) for t, a in enumerate(s.alpha)
        )
        yield equal(
            "both vanish at θ_1:T",
            s.title,
            np.stack([residual, score]),
            np.zeros((2, s.base.size)),
            scale=s.H0 @ (s.joint - s.base),
        )
        yield equal(
            "anywhere: residual = −H_0⁻¹ score", s.title, elsewhere, -solve(s.H0, score_there)
        )


@equation(
    "GMA-18",
    r"\hat\theta_{1:T} = \theta_0"
    r" + \sum_t\alpha_t(\bar H^{-1}H_{0+t})(\theta_t - \theta_0)",
)
def gma_18():
    """GM-10 again, with H_{0+t} = H_0 + H_t: the mode of p_0^γ Π q_t^{α_t} for Laplace's q_t."""
    for problem in ALL:
        s = fine_tuned(problem)
        kind = "hessian"
        q = [
            bm.laplace(loss, s.prior, params=jnp.asarray(theta), curvature=kind)
            for loss, theta in zip(s.losses, s.thetas, strict=True)
        ]
        H = [s.hessian(t, s.thetas[t]) for t in range(2)]
        H_bar = s.H0 + s.alpha[0] * H[0] + s.alpha[1] * H[1]
        printed = s.base + sum(
            a * solve(H_bar, (s.H0 + h) @ (theta - s.base))
            for a, h, theta in zip(s.alpha, H, s.thetas, strict=True)
        )
        yield equal(
            "`merge(laplace)` as printed", s.title, bm.merge(q, s.alpha, s.prior).mode(), printed
        )


@equation(
    "GMA-19",
    r"p_\alpha(\theta) \propto p_0(\theta)\prod_t e^{-\alpha_t\ell_t(\theta)} \approx"
    r" p_0(\theta)\prod_t e^{-\alpha_t[\nabla\ell_t(\theta_t)^\top(\theta-\theta_t)"
    r" + \frac12\|\theta-\theta_t\|^2_{H_t}]} \propto q_\alpha(\theta)",
)
def gma_19():
    """Laplace's approximation of the posterior over all data, with the linear term that the paper
    drops (misprint 5). Exact for least squares; the log-densities differ by third order around the
    tasks' solutions."""
    for problem in ALL:
        s = fine_tuned(problem)
        rng = np.random.default_rng(0)
        points = s.joint + 0.1 * rng.normal(size=(4, s.base.size))
        exact = [
            -float(half_square(at - s.base, s.H0))
            - sum(
                a * float(loss.total(jnp.asarray(at)))
                for a, loss in zip(s.alpha, s.losses, strict=True)
            )
            for at in points
        ]
        q = bm.merge(s.posteriors, s.alpha, s.prior)
        approximate = [float(q.log_density(jnp.asarray(at))) for at in points]
        if problem == "least squares":
            yield equal(
                "log-densities up to a constant", s.title, np.diff(approximate), np.diff(exact)
            )
            continue
        factor = bm.expand(s.losses[0], jnp.asarray(s.thetas[0]), curvature="hessian")

        def remainder(h, s=s, factor=factor):
            at = jnp.asarray(s.thetas[0] + h * (s.joint - s.base))
            exact = s.losses[0].total(at) - s.losses[0].total(jnp.asarray(s.thetas[0]))
            log_ratio = factor.log_density(at) - factor.log_density(jnp.asarray(s.thetas[0]))
            return abs(float(exact + log_ratio))

        yield order("order of ℓ_t − ℓ̂_t", s.title, remainder, 3)


@equation(
    "GMA-20",
    r"\theta_{1:T} = \arg\max_\theta p_0(\theta)\prod_t[p(\theta|D_t)/p_0(\theta)]^{\alpha_t},"
    r" \qquad \hat\theta_{1:T} = \arg\max_\theta q_\alpha(\theta)",
)
def gma_20():
    """Theorem 1. The joint solution is the mode of the exact product, GM-10 that of the product of
    Laplace posteriors."""
    for problem in ALL:
        s = fine_tuned(problem)

        def log_product(x, s=s):
            log_p0 = -half_square(x - s.base, s.H0)
            ratios = [(log_p0 - loss.total(x)) - log_p0 for loss in s.losses]
            return log_p0 + s.alpha[0] * ratios[0] + s.alpha[1] * ratios[1]

        pull = s.H0 @ (s.joint - s.base)
        yield stationary("left: gradient at θ_1:T", s.title, log_product, s.joint, pull)
        H = [s.hessian(t, theta) for t, theta in enumerate(s.thetas)]
        slopes = [s.gradient(t, theta) for t, theta in enumerate(s.thetas)]

        def log_q(x, s=s, H=H, slopes=slopes):
            factors = [
                a * (slopes[t] @ (x - s.thetas[t]) + half_square(x - s.thetas[t], H[t]))
                for t, a in enumerate(s.alpha)
            ]
            return -half_square(x - s.base, s.H0) - sum(factors)

        merged = bm.merge(s.posteriors, s.alpha, s.prior).mode()
        scale = s.H0 @ (np.asarray(merged) - s.base)
        yield stationary("right: gradient at the merge", s.title, log_q, merged, scale)


@equation("GMA-21", r"\nabla\ell_t(\theta) \approx \nabla\ell_t(\theta_t) + H_t(\theta - \theta_t)")
def gma_21():
    """GM-9 again: exact for linear models, at any distance."""
    s = fine_tuned("least squares")
    rng = np.random.default_rng(0)
    for distance in (1.0, 100.0):
        at = s.thetas[0] + distance * rng.normal(size=s.base.size)
        taylor = s.gradient(0, s.thetas[0]) + s.hessian(0, s.thetas[0]) @ (at - s.thetas[0])
        yield equal(f"distance {distance:g}", s.title, s.gradient(0, at), taylor)


@equation(
    "GMA-§1.5",
    r"\theta \leftarrow \arg\max_\theta p_0(\theta)\prod_t e^{-\alpha_t\hat\ell_t(\theta)},"
    r" \qquad \hat\ell_t \text{ expanded at the last } \theta",
)
def gma_1_5():
    """A way on that the paper names: expand every task again at the merged model. Each step needs a
    gradient and a Hessian from every task and is a Newton step of joint training; the error falls
    quadratically."""
    for problem in NONLINEAR:
        s = fine_tuned(problem)
        at = bm.merge(s.posteriors, s.alpha, s.prior).mode()
        errors = [np.linalg.norm(np.asarray(at) - s.joint)]
        for _ in range(5):
            again = [s.prior * bm.expand(loss, at, curvature="hessian") for loss in s.losses]
            at = bm.merge(again, s.alpha, s.prior).mode()
            errors.append(np.linalg.norm(np.asarray(at) - s.joint))
        a, b, c = [e for e in errors if e > 1e-10 * errors[0]][-3:]
        yield between(
            "order of the last steps", s.title, np.log(c / b) / np.log(b / a), 1.5, 2.5, "2 ± 0.5"
        )
        yield equal("after five steps", s.title, at, s.joint)


@equation(
    "GMA-§1.6",
    r"p(\theta|D_{1:T}) \propto p_0(\theta)^{1 - \sum_t\alpha_t}"
    r"\prod_t p(\theta|D_t)^{\alpha_t},"
    r" \qquad p(\theta|D_t) = N(\theta_t, (H_0 + H_t)^{-1})",
)
def gma_1_6():
    """For linear regression the product of posteriors is the posterior of all data, as a density
    and not only at its mode."""
    s = fine_tuned("least squares")
    merged = bm.merge(s.posteriors, s.alpha, s.prior)
    joint = bm.laplace(bm.JointTarget(s.losses, s.alpha), s.prior)
    yield equal("mean", s.title, merged.mean(), joint.mean())
    yield equal("covariance", s.title, merged.covariance(), joint.covariance())
    yield equal(
        "Kullback-Leibler divergence, nats", s.title, merged.kl_divergence(joint), 0.0, scale=1.0
    )
