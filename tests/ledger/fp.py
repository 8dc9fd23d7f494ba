"""Fast Previews: equations 1 to 14 and Algorithm 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import sympy as sp

import bayesmerge as bm
from ledger.book import between, differs, equal, equation, order, stationary, symbolic
from ledger.gm import solve, task_arithmetic
from ledger.problems import (
    ALL,
    NONLINEAR,
    data,
    fine_tuned,
    from_scratch,
    half_square,
    target,
)


@equation("FP-1", r"\sum_t\alpha_t\ell_t(\theta)")
def fp_1():
    """The weighted multitask loss, with its gradient and Hessian: a `JointTarget`."""
    for problem in ALL:
        s = from_scratch(problem)
        joint, at = bm.JointTarget(s.losses, s.alpha), jnp.asarray(s.thetas[0])
        value, gradient = joint.value_and_gradient(at)
        parts = [a * loss.total(at) for a, loss in zip(s.alpha, s.losses, strict=True)]
        slopes = [a * s.gradient(t, at) for t, a in enumerate(s.alpha)]
        bends = [a * s.hessian(t, at) for t, a in enumerate(s.alpha)]
        yield equal("value", s.title, value, sum(parts))
        yield equal("gradient", s.title, gradient, sum(slopes))
        yield equal("Hessian", s.title, bm.curvature(joint, at, "hessian"), sum(bends))


def lowest(objective, size):
    """argmin of a quadratic by scipy, knowing nothing of what it is."""
    value = jax.jit(objective)
    found = scipy.optimize.minimize(
        lambda x: float(value(jnp.asarray(x))),
        np.zeros(size),
        jac=jax.jit(jax.grad(objective)),
        method="BFGS",
        options={"gtol": 1e-12},
    )
    return found.x


@equation(
    "FP-2",
    r"\sum_t\alpha_t\theta_t = \arg\min_\theta \gamma\tfrac12\|\theta\|^2"
    r" + \sum_t\alpha_t\tfrac12\|\theta - \theta_t\|^2",
)
def fp_2():
    """Simple averaging as a minimum: the true losses are replaced by spheres around the tasks'
    solutions. The γ makes it hold for weights of any sum."""
    for problem in ALL:
        s = from_scratch(problem)
        gamma = 1 - s.alpha.sum()

        def objective(x, s=s, gamma=gamma):
            spheres = [
                0.5 * a * jnp.sum((x - theta) ** 2)
                for a, theta in zip(s.alpha, s.thetas, strict=True)
            ]
            return gamma * 0.5 * x @ x + sum(spheres)

        average = s.alpha @ np.stack(s.thetas)
        yield equal(
            "the minimum, by scipy", s.title, lowest(objective, average.size), average, within=1e-8
        )
        yield stationary("gradient there", s.title, objective, average)
        scheme = bm.schemes.average(list(map(jnp.asarray, s.thetas)), s.alpha).mode()
        yield equal("`average`", s.title, scheme, average)


@equation(
    "FP-3",
    r"\theta_0 + \sum_t\alpha_t(\theta_t - \theta_0) = \arg\min_\theta"
    r" \gamma\tfrac12\|\theta - \theta_0\|^2 + \sum_t\alpha_t\tfrac12\|\theta - \theta_t\|^2",
)
def fp_3():
    """Task arithmetic as a minimum: the same, with the base model for the origin."""
    for problem in ALL:
        s = fine_tuned(problem)
        gamma = 1 - s.alpha.sum()
        objective = lambda x, s=s, gamma=gamma: (  # noqa: E731
            gamma * 0.5 * jnp.sum((x - s.base) ** 2)
            + sum(
                0.5 * a * jnp.sum((x - theta) ** 2)
                for a, theta in zip(s.alpha, s.thetas, strict=True)
            )
        )
        expected = task_arithmetic(s)
        yield equal(
            "the minimum, by scipy",
            s.title,
            lowest(objective, expected.size),
            expected,
            within=1e-8,
        )
        yield stationary("gradient there", s.title, objective, expected)
        thetas = list(map(jnp.asarray, s.thetas))
        scheme = bm.schemes.task_arithmetic(thetas, s.alpha, jnp.asarray(s.base)).mode()
        yield equal("`task_arithmetic`", s.title, scheme, expected)


@equation(
    "FP-4",
    r"\ell_t(\theta) \approx \ell_t(\theta_t) + \nabla\ell_t(\theta_t)^\top(\theta-\theta_t)"
    r" + \tfrac12\|\theta-\theta_t\|^2_{\nabla^2\ell_t(\theta_t)}"
    r" \approx \ell_t(\theta_t) + \tfrac12\|\theta-\theta_t\|^2",
)
def fp_4():
    """What averaging puts for a loss. The first step is Taylor's, of third order; the second takes
    the gradient for zero and the Hessian for I. It is exact for least squares with orthonormal
    columns and no prior, and otherwise wrong already in first order, for θ_t is not a minimum of
    ℓ_t alone."""
    X, y = data("least squares")[0]
    Q = np.linalg.qr(X)[0]
    loss = target("least squares", Q, y)
    theta = Q.T @ y
    at = theta + np.random.default_rng(0).normal(size=theta.size)
    true = loss.total(jnp.asarray(at)) - loss.total(jnp.asarray(theta))
    yield equal("orthonormal columns", "diabetes, no prior", true, 0.5 * np.sum((at - theta) ** 2))
    for problem in NONLINEAR:
        s = fine_tuned(problem)
        loss, theta = s.losses[0], s.thetas[0]
        slope, bend, step = s.gradient(0, theta), s.hessian(0, theta), s.joint - s.base

        def gaps(h, loss=loss, theta=theta, slope=slope, bend=bend, step=step):
            move = h * step
            rise = float(loss.total(jnp.asarray(theta + move)) - loss.total(jnp.asarray(theta)))
            taylor = slope @ move + 0.5 * move @ bend @ move
            return abs(rise - taylor), abs(rise - 0.5 * move @ move)

        yield order("order of the first step", s.title, lambda h, g=gaps: g(h)[0], 3)
        yield order("order of both", s.title, lambda h, g=gaps: g(h)[1], 1)


@equation(
    "FP-5",
    r"p_\alpha(\theta) \propto p_0(\theta)\prod_t p(D_t|\theta)^{\alpha_t} \propto"
    r" p_0(\theta)^\gamma\prod_t p_t(\theta)^{\alpha_t}, \qquad \gamma = 1 - \sum_t\alpha_t",
)
def fp_5():
    """The one equation. Bayes' rule for every task, p_t ∝ p_0 p(D_t|θ), and collecting p_0. The
    logarithms of both sides differ by a constant, everywhere and for every loss; that of `merge`
    too, where the posteriors are exact."""
    for problem in ALL:
        s = fine_tuned(problem)
        rng = np.random.default_rng(0)
        points = s.joint + rng.normal(size=(6, s.base.size))
        gamma = 1 - s.alpha.sum()
        log_p0 = np.array([-float(half_square(at - s.base, s.H0)) for at in points])
        losses = np.array(
            [[float(loss.total(jnp.asarray(at))) for loss in s.losses] for at in points]
        )
        left = log_p0 - losses @ s.alpha
        right = gamma * log_p0 + (log_p0[:, None] - losses) @ s.alpha
        yield equal("log-densities up to a constant", s.title, np.diff(right), np.diff(left))
        if problem == "least squares":
            merged = bm.merge(s.posteriors, s.alpha, s.prior)
            found = [merged.log_prob(jnp.asarray(at)) for at in points]
            yield equal("`merge`", s.title, np.diff(found), np.diff(left))
    coin = [bm.Beta.from_concentrations(a, b) for a, b in ((3.0, 5.0), (7.0, 2.0))]
    prior = bm.Beta.from_concentrations(2.0, 2.0)
    merged = bm.merge(coin, [1.0, 1.0], prior)
    pooled = scipy.stats.beta(2 + 1 + 5, 2 + 3 + 0)
    grid = np.linspace(0.05, 0.95, 7)
    yield equal(
        "two coins: the density of all flips",
        "Beta",
        [merged.log_prob(jnp.asarray(p)) for p in grid],
        pooled.logpdf(grid),
    )


@equation(
    "FP-6",
    r"\theta_\alpha = \arg\max_\theta \gamma\log p_0(\theta) + \sum_t\alpha_t\log p_t(\theta)",
)
def fp_6():
    """With exact posteriors merging is joint training: θ_α minimises the weighted loss."""
    for problem in ALL:
        s = fine_tuned(problem)

        def log_density(x, s=s):
            log_p0 = -half_square(x - s.base, s.H0)
            tasks = [
                a * (log_p0 - loss.total(x)) for a, loss in zip(s.alpha, s.losses, strict=True)
            ]
            return (1 - s.alpha.sum()) * log_p0 + sum(tasks)

        pull = s.H0 @ (s.joint - s.base)
        yield stationary("gradient at the jointly trained θ", s.title, log_density, s.joint, pull)


@functools.cache
def one_parameter():
    """Logistic regression on one feature of breast cancer, prior N(0, 1), 40 rows."""
    (x, y), *_ = data("logistic")
    return x[:40, 1], 2.0 * y[:40] - 1


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(101)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def logistic_at(theta):
    """ℓ, ℓ', ℓ'' at every entry of θ."""
    x, sign = one_parameter()
    margin = sign[:, None] * x[:, None] * theta[None, :]
    p = scipy.special.expit(-margin)
    loss = np.logaddexp(0, -margin).sum(0)
    slope = (-(sign * x)[:, None] * p).sum(0)
    bend = ((x**2)[:, None] * p * (1 - p)).sum(0)
    return loss, slope, bend


def logistic_moments(mean, spread):
    """E_q[ℓ], E_q[ℓ'], E_q[ℓ''] under N(mean, spread²), by Gauss-Hermite quadrature."""
    return tuple(WEIGHTS @ f for f in logistic_at(mean + spread * NODES))


def monte_carlo_errors(mean, precision, pairs):
    """Standard errors of the mean and precision at which E[ℓ'] + m and E[ℓ''] + 1 − S vanish, when
    E is the average over `pairs` pairs of draws m ± d: the covariance of one pair's averages, and
    the slope of the two conditions in (m, S), both by quadrature."""

    def conditions(v):
        _, slope, bend = logistic_moments(v[0], v[1] ** -0.5)
        return np.array([slope + v[0], bend + 1 - v[1]])

    deviation = NODES / np.sqrt(precision)
    above, below = logistic_at(mean + deviation)[1:], logistic_at(mean - deviation)[1:]
    averages = (np.array(above) + np.array(below)) / 2
    averages = averages - (averages @ WEIGHTS)[:, None]
    covariance = (averages * WEIGHTS) @ averages.T / pairs
    at, h = np.array([mean, precision]), 1e-4
    slopes = [(conditions(at + e) - conditions(at - e)) / (2 * h) for e in h * np.eye(2)]
    J = np.stack(slopes, axis=1)
    return np.sqrt(np.diag(solve(J, solve(J, covariance).T)))


@equation(
    "FP-7", r"q_t = \arg\min_{q\in\mathcal Q} E_q[\ell_t(\theta)] + \mathrm{KL}(q \,\|\, p_0)"
)
def fp_7():
    """The variational posterior. Among all Gaussians it is Bayes' posterior for least squares. For
    logistic regression its optimum, found by a general minimiser, has E_q[∇ℓ] + H_0(m − θ_0) = 0
    and precision E_q[∇²ℓ] + H_0, and is not Laplace's.

    `von` keeps its draws here, pairs m ± d. For least squares two of them give exact expectations,
    and from a wrong start it reaches Bayes' posterior, with the GGN and ρ = 1 in one step. For
    logistic regression both conditions hold over its own 20 000 draws to rounding, and what remains
    to the optimum is the Monte-Carlo error of these draws: it is told in standard errors, which
    follow, by quadrature, from the variance of a pair's averages and the slope of the conditions.
    """
    s = from_scratch("least squares")
    q = bm.laplace(s.losses[0], s.prior)
    (X, y), size = data("least squares")[1], s.base.size
    keep = {"key": jax.random.key(0), "resample": False, "progress": False}
    H = X.T @ X + np.eye(size)
    wrong = bm.FullGaussian.from_mean_precision(jnp.full(size, 3.0), 0.2 * jnp.eye(size))
    for curvature, rho, steps in (("ggn", 1.0, 1), ("ggn", 0.5, 60), ("hessian", 0.5, 120)):
        fit = bm.von(
            s.losses[0],
            s.prior,
            start=wrong,
            curvature=curvature,
            num_samples=2,
            step_size=rho,
            num_steps=steps,
            **keep,
        )
        what = f"`von`, {curvature}, ρ = {rho:g}, steps: {steps}"
        yield equal(f"{what}: mean", s.title, fit.mean(), solve(H, X.T @ y))
        yield equal(f"{what}: precision", s.title, fit.precision.value, H)

    def objective(mean, factor):
        covariance = factor @ factor.T
        expected = 0.5 * jnp.sum((y - X @ mean) ** 2) + 0.5 * jnp.sum(X.T @ X * covariance)
        log_determinant = 2 * jnp.sum(jnp.log(jnp.abs(jnp.diag(factor))))
        divergence = 0.5 * (jnp.trace(covariance) + mean @ mean - size - log_determinant)
        return expected + divergence

    factor = jnp.linalg.cholesky(q.covariance())
    slopes = jax.jit(jax.grad(objective, argnums=(0, 1)))(q.mean(), factor)
    slopes = np.concatenate([slopes[0], np.tril(slopes[1]).ravel()])
    scale = np.linalg.inv(np.asarray(factor))
    yield equal(
        "gradient in mean and factor at Bayes' posterior", s.title, slopes, 0 * slopes, scale=scale
    )

    def bound(v):
        mean, spread = v[0], np.exp(v[1])
        return logistic_moments(mean, spread)[0] + 0.5 * (spread**2 + mean**2) - v[1]

    found = scipy.optimize.minimize(
        bound, [0.0, 0.0], tol=1e-14, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14}
    )
    mean, spread = found.x[0], np.exp(found.x[1])
    _, slope, bend = logistic_moments(mean, spread)
    title = "breast cancer, one feature, 40 rows"
    yield equal("E[∇ℓ] + H_0 m", title, slope + mean, 0.0, within=1e-5, scale=slope)
    yield equal("precision", title, 1 / spread**2, bend + 1, within=1e-5)
    x, sign = one_parameter()
    loss = target("logistic", x[:, None], (sign + 1) / 2)
    prior = bm.FullGaussian.from_mean_precision(jnp.zeros(1), jnp.eye(1))
    laplace = bm.laplace(loss, prior)
    yield differs(
        "Laplace has another precision", title, laplace.precision.value.ravel(), [1 / spread**2]
    )
    pairs = 10_000
    errors = monte_carlo_errors(mean, 1 / spread**2, pairs)
    for curvature in ("ggn", "hessian"):
        fit = bm.von(
            loss,
            prior,
            curvature=curvature,
            num_samples=2 * pairs,
            step_size=1.0,
            num_steps=40,
            **keep,
        )
        m, S = float(fit.mean()[0]), float(fit.precision.value[0, 0])
        draws = m + np.asarray(fit.deviations(jax.random.key(0), pairs))[:, 0]
        slope, bend = (f.mean() for f in logistic_at(draws)[1:])
        what = f"`von`, {curvature}"
        yield equal(f"{what}: E[∇ℓ] + H_0 m over its draws", title, slope + m, 0.0, scale=slope)
        yield equal(f"{what}: precision over its draws", title, S, bend + 1)
        away = np.abs([m - mean, S - 1 / spread**2]) / errors
        for name, distance in zip(("mean", "precision"), away, strict=True):
            yield between(
                f"{what}: {name} from the optimum, in standard errors",
                title,
                distance,
                0.0,
                3.0,
                "< 3",
            )


@equation(
    "FP-8",
    r"\hat\ell_t(\theta) = -\log q_t(\theta) \;\Rightarrow\; \hat\theta_\alpha ="
    r" \arg\max_\theta \gamma\log p_0(\theta) - \sum_t\alpha_t\hat\ell_t(\theta)",
)
def fp_8():
    """Any approximate posterior is a surrogate for its loss, and the merged model is the best point
    of their weighted sum. For mixtures, with a prior and without, it is a point where the sum is
    stationary."""
    for problem in ALL:
        s = fine_tuned(problem)
        merged = bm.merge(s.posteriors, s.alpha, s.prior).mode()

        def objective(x, s=s):
            surrogates = [a * q.log_prob(x) for a, q in zip(s.alpha, s.posteriors, strict=True)]
            return (1 - s.alpha.sum()) * s.prior.log_prob(x) + sum(surrogates)

        scale = s.H0 @ (np.asarray(merged) - s.base)
        yield stationary("gradient at the merged mode", s.title, objective, merged, scale)
    coins = [bm.Beta.from_concentrations(a, b) for a, b in ((3.0, 5.0), (7.0, 2.5))]
    prior, alpha = bm.Beta.from_concentrations(2.0, 2.0), [0.8, 0.9]

    def minus(p):
        tasks = [a * q.log_prob(jnp.asarray(p)) for a, q in zip(alpha, coins, strict=True)]
        return float(0.7 * prior.log_prob(jnp.asarray(p)) - sum(tasks))

    found = scipy.optimize.minimize_scalar(
        minus, bounds=(0.01, 0.99), method="bounded", options={"xatol": 1e-10}
    )
    yield equal(
        "two coins, by scipy", "Beta", bm.merge(coins, alpha, prior).mode(), found.x, within=1e-7
    )
    for m, gamma in (
        (GaussianMixtures(0), "flat prior"),
        (GaussianMixtures(0).under_prior(1.4), "γ = −0.4"),
    ):
        merged = m.merge().mode()

        def weighted(x, m=m):
            surrogates = [a * q.log_prob(x) for a, q in zip(m.alpha, m.mixtures, strict=True)]
            return sum(surrogates) + (m.gamma * m.prior.log_prob(x) if m.prior else 0.0)

        title, scale = "two mixtures of three Gaussians", m.pulls(np.asarray(merged))
        yield stationary(f"gradient at the merged mode, {gamma}", title, weighted, merged, scale)


@equation(
    "FP-9",
    r"q_t(\theta) = N(\theta|\theta_t, I) \;\Rightarrow\;"
    r" \hat\ell_t(\theta) = \tfrac12\|\theta-\theta_t\|^2 + \mathrm{const}",
)
def fp_9():
    """Averaging is merging with unit Gaussians: FP-2 from FP-8."""
    for problem in ALL:
        s = from_scratch(problem)
        qs = [bm.IsotropicGaussian.from_mean_precision(jnp.asarray(t), 1.0) for t in s.thetas]
        at = np.random.default_rng(0).normal(size=(5, s.base.size))
        surrogate = [-float(qs[0].log_prob(jnp.asarray(x))) for x in at]
        sphere = 0.5 * np.sum((at - s.thetas[0]) ** 2, axis=1)
        yield equal("−log q_t up to a constant", s.title, np.diff(surrogate), np.diff(sphere))
        unit = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(s.base.size), 1.0)
        yield equal(
            "its merge is the average",
            s.title,
            bm.merge(qs, s.alpha, unit).mode(),
            s.alpha @ np.stack(s.thetas),
        )


@equation(
    "FP-10",
    r"\hat\theta_\alpha = (\sum_t\alpha_t H_t)^{-1}\sum_t\alpha_t H_t\theta_t",
)
def fp_10():
    """Hessian-weighted merging: Gaussians of any precision, H_t that of q_t with the prior in it,
    and Σα = 1, so that γ = 0."""
    alpha = np.array([0.35, 0.65])
    for problem in ALL:
        s = fine_tuned(problem)
        H = [np.asarray(q.precision.value) for q in s.posteriors]
        printed = solve(
            sum(a * h for a, h in zip(alpha, H, strict=True)),
            sum(a * h @ theta for a, h, theta in zip(alpha, H, s.thetas, strict=True)),
        )
        thetas = list(map(jnp.asarray, s.thetas))
        yield equal(
            "`hessian_weighted`",
            s.title,
            bm.schemes.hessian_weighted(thetas, H, alpha).mode(),
            printed,
        )
        yield equal(
            "`merge`, with p_0 and γ = 0",
            s.title,
            bm.merge(s.posteriors, alpha, s.prior).mode(),
            printed,
        )


class GaussianMixtures:
    """T mixtures of K Gaussians in the plane, drawn at random: here the truth is found by force."""

    def __init__(self, seed: int, T: int = 2, K: int = 3, diagonal: bool = False):
        rng = np.random.default_rng(seed)
        self.weights = rng.dirichlet(np.ones(K), size=T)
        self.means = rng.normal(scale=1.5, size=(T, K, 2))
        A = rng.normal(size=(T, K, 2, 4))
        self.precisions = A @ np.swapaxes(A, -1, -2) + 0.5 * np.eye(2)
        self.diagonal = diagonal
        if diagonal:
            self.precisions = self.precisions * np.eye(2)
        self.alpha = rng.uniform(0.2, 1.0, size=T)
        self.base, self.H0, self.gamma = rng.normal(size=2), np.zeros((2, 2)), 0.0

    def under_prior(self, total: float):
        """The same beside p_0^γ, with Σα = `total` and γ = 1 − Σα."""
        self.alpha = self.alpha * (total / self.alpha.sum())
        self.H0, self.gamma = np.array([[0.6, 0.2], [0.2, 0.4]]), 1 - total
        return self

    @functools.cached_property
    def mixtures(self):
        """The library's."""
        family, precisions = bm.FullGaussian, self.precisions
        if self.diagonal:
            family, precisions = bm.DiagonalGaussian, np.diagonal(precisions, axis1=-2, axis2=-1)
        members = jax.vmap(family.from_mean_precision)
        return [
            bm.Mixture(weights, members(jnp.asarray(means), jnp.asarray(H)))
            for weights, means, H in zip(self.weights, self.means, precisions, strict=True)
        ]

    @property
    def prior(self):
        if not self.gamma:
            return None
        return bm.FullGaussian.from_mean_precision(jnp.asarray(self.base), jnp.asarray(self.H0))

    def merge(self):
        """The library's product."""
        return bm.merge(self.mixtures, self.alpha, self.prior)

    def log_components(self, theta):
        """log π_k N(θ|θ_tk, H_tk⁻¹), (T, K)."""
        away = theta - self.means
        distance = np.einsum("tki,tkij,tkj->tk", away, self.precisions, away)
        log_determinant = np.linalg.slogdet(self.precisions)[1]
        return np.log(self.weights) + 0.5 * (log_determinant - distance) - np.log(2 * np.pi)

    def responsibilities(self, theta):
        return scipy.special.softmax(self.log_components(theta), axis=1)

    def log_density(self, theta):
        """γ log p_0(θ) + Σ_t α_t log q_t(θ), up to a constant."""
        prior = -0.5 * self.gamma * (theta - self.base) @ self.H0 @ (theta - self.base)
        return prior + self.alpha @ scipy.special.logsumexp(self.log_components(theta), axis=1)

    def pulls(self, theta):
        """The gradients of γ log p_0 and of every α_t log q_t, (1 + T, 2)."""
        pulls = np.einsum("tkij,tkj->tki", self.precisions, self.means - theta)
        tasks = np.einsum("t,tk,tki->ti", self.alpha, self.responsibilities(theta), pulls)
        return np.vstack([self.gamma * self.H0 @ (self.base - theta), tasks])

    def gradient(self, theta):
        return self.pulls(theta).sum(0)

    def step(self, theta, responsibilities=None):
        """FP-12."""
        pi = self.responsibilities(theta) if responsibilities is None else responsibilities
        H = np.einsum("tk,t,tkij->ij", pi, self.alpha, self.precisions)
        linear = np.einsum("tk,t,tkij,tkj->i", pi, self.alpha, self.precisions, self.means)
        return solve(self.gamma * self.H0 + H, self.gamma * self.H0 @ self.base + linear)

    def climb(self, theta, steps=5000):
        """FP-12 until it no longer moves, and Σα log q along the way."""
        values = [self.log_density(theta)]
        for _ in range(steps):
            last, theta = theta, self.step(theta)
            values.append(self.log_density(theta))
            if np.linalg.norm(theta - last) < 1e-14:
                break
        return theta, np.array(values)


@equation(
    "FP-11",
    r"q_t \propto \sum_k \pi_k e^{\lambda_{tk}^\top T(\theta)} \;\Rightarrow\;"
    r" \hat\ell_t(\theta) = -\log\sum_k\pi_k e^{\lambda_{tk}^\top T(\theta)}",
)
def fp_11():
    """Mixtures of an exponential family, in natural parameters. Here π_k carries the normaliser
    of its component: for a mixture Σ w_kN_k it is w_k exp(−A(λ_k)). `Mixture` has the density and
    the responsibilities that scipy's normal densities give."""
    m = GaussianMixtures(0)
    components = [
        bm.FullGaussian.from_mean_precision(jnp.asarray(mean), jnp.asarray(H))
        for mean, H in zip(m.means[0], m.precisions[0], strict=True)
    ]
    mixture = bm.Mixture(m.weights[0], components)
    log_pi = np.log(m.weights[0]) - np.array([q.log_partition() for q in components])
    for theta in np.random.default_rng(1).normal(size=(3, 2)):
        inner = [float(q.log_density(jnp.asarray(theta))) for q in components]
        parts = np.array(
            [
                w * scipy.stats.multivariate_normal(mean, np.linalg.inv(H)).pdf(theta)
                for w, mean, H in zip(m.weights[0], m.means[0], m.precisions[0], strict=True)
            ]
        )
        density, where, title = parts.sum(), theta.round(1), "three Gaussians in the plane"
        printed = -scipy.special.logsumexp(log_pi + inner)
        yield equal(f"at θ = {where}", title, printed, -np.log(density))
        at = jnp.asarray(theta)
        yield equal(f"`log_prob` at θ = {where}", title, -mixture.log_prob(at), -np.log(density))
        yield equal(
            f"`responsibilities` at θ = {where}",
            title,
            mixture.responsibilities(at),
            parts / density,
        )


@equation(
    "FP-12",
    r"\theta \leftarrow (\sum_{t,k}\hat\pi_{tk}\alpha_t H_{tk})^{-1}"
    r"\sum_{t,k}\hat\pi_{tk}\alpha_t H_{tk}\theta_{tk},"
    r" \qquad \hat\pi_{tk} \propto \pi_k N(\theta|\theta_{tk}, H_{tk}^{-1})",
)
def fp_12():
    """The mode of a product of mixtures by expectation-maximisation: FP-10 with components,
    weighted by how responsible each is. No step lowers the density, and it stops at a stationary
    point; the best of the starts is the best point of a fine grid. Written out here, and by the
    library: a step is `minorizer(θ).mode()` of the product that `merge` gives, and its `mode` ends
    where the best of the same starts does. A prior adds γH_0 and γH_0θ_0 to the two sums, and
    nothing else changes, for γ < 0 too while the sum of the matrices stays positive definite."""
    mode = jax.jit(lambda product, starts: product.mode(starts=starts))
    step = jax.jit(lambda product, theta: product.minorizer(theta).mode())
    settings = [GaussianMixtures(seed) for seed in range(4)]
    settings += [GaussianMixtures(0).under_prior(total) for total in (0.6, 1.4)]
    titles = [f"two mixtures of three Gaussians, number {i + 1}" for i in range(4)]
    titles += ["number 1, γ = 0.4", "number 1, γ = −0.4"]
    for m, title in zip(settings, titles, strict=True):
        starts = m.means.reshape(-1, 2)
        runs = [m.climb(start) for start in starts]
        falls = max(-np.diff(values).min() for _, values in runs)
        yield between("largest fall of Σα log q", title, falls, -np.inf, 1e-12, "≤ 1e-12")
        worst = max(np.linalg.norm(m.gradient(theta)) for theta, _ in runs)
        yield between("gradient at the end", title, worst, 0.0, 1e-7, "≤ 1e-7")
        end, values = max(runs, key=lambda run: run[1][-1])
        grid = np.stack(np.meshgrid(*[np.linspace(-6, 6, 241)] * 2), -1).reshape(-1, 2)
        away = grid[:, None, None, :] - m.means
        distance = np.einsum("gtki,tkij,gtkj->gtk", away, m.precisions, away)
        log_det = np.linalg.slogdet(m.precisions)[1]
        logs = np.log(m.weights) + 0.5 * (log_det - distance) - np.log(2 * np.pi)
        pull = np.einsum("gi,ij,gj->g", grid - m.base, m.H0, grid - m.base)
        heights = scipy.special.logsumexp(logs, axis=2) @ m.alpha - 0.5 * m.gamma * pull
        highest = heights.max() - values[-1]
        yield between("best of a grid, less best found", title, highest, -0.1, 1e-9, "≤ 1e-9")

        product, falls = m.merge(), []
        for start in starts:
            path = [jnp.asarray(start)]
            for _ in range(200):
                path.append(step(product, path[-1]))
            falls.append(-np.diff([m.log_density(np.asarray(theta)) for theta in path]).min())
        yield equal(
            "`minorizer(θ).mode()` at every start",
            title,
            [step(product, jnp.asarray(start)) for start in starts],
            [m.step(start) for start in starts],
        )
        yield between("largest fall along these", title, max(falls), -np.inf, 1e-12, "≤ 1e-12")
        found = np.asarray(mode(product, jnp.asarray(starts)))
        yield equal("`mode`, the best of the same starts", title, found, end)
        yield equal("`mode`: gradient", title, m.gradient(found), np.zeros(2), scale=m.pulls(found))


def algorithm_1(m, alphas, theta):
    """The loop that the paper runs, from one θ for every α."""
    tau = np.diagonal(m.precisions, axis1=-2, axis2=-1)
    for _ in range(3000):
        away = theta[:, None, None, :] - m.means
        logs = np.log(m.weights) + 0.5 * (np.log(tau) - tau * away**2).sum(-1)
        pi = scipy.special.softmax(logs, axis=2) * alphas[:, :, None]
        weight = np.einsum("atk,tkp->ap", pi, tau)
        theta = np.einsum("atk,tkp->ap", pi, tau * m.means) / weight
    return theta


@equation(
    "FP-Alg. 1", r"\text{FP-12 with diagonal } H_{tk}, \text{ for many } \alpha \text{ at once}"
)
def fp_algorithm_1():
    """The loop that the paper runs, for diagonal precisions and a whole grid of weightings: every
    weighting ends where FP-12 with matrices does. (With normalised components, see misprint 10.)
    `merge(…).mode()` of diagonal mixtures under `vmap` over the weightings ends where the loop does
    from the same start, and so does `maxima("blend")`, from the mode of Π_t Π_k q_tk^{α_tπ_tk} over
    the whole grid with its corners. `preview` searches from more starts: the loop is nowhere
    higher."""
    m = GaussianMixtures(5, T=3, diagonal=True)
    every = np.asarray(bm.simplex_grid(3, 0.25))
    alphas = every[(every > 0).all(1)]
    centre, title = m.means.mean((0, 1)), "three mixtures of three Gaussians"
    theta = algorithm_1(m, alphas, np.broadcast_to(centre, (len(alphas), 2)))
    for alpha, end in zip(alphas, theta, strict=True):
        m.alpha = alpha
        single, _ = m.climb(centre, 3000)
        yield equal(f"α = {alpha.round(2)}", title, end, single)
    mixtures, starts = m.mixtures, jnp.asarray(centre)[None]
    modes = jax.jit(jax.vmap(lambda a: bm.merge(mixtures, a).mode(starts=starts)))(
        jnp.asarray(alphas)
    )
    yield equal("`mode` under `vmap`, the same start", title, modes, theta)
    blends = []
    for alpha in every:
        m.alpha = alpha
        blends.append(m.step(centre, m.weights))
    theta = algorithm_1(m, every, np.stack(blends))
    climbed = bm.merge(mixtures, every).maxima("blend", accelerate=False).best().params
    yield equal("`maxima` from the blend, whole grid", title, climbed, theta)
    seen = bm.preview(mixtures, every, lambda x: {"first": x[0], "second": x[1]}, progress=False)
    found = np.stack([np.asarray(seen.metrics[name]) for name in ("first", "second")], axis=1)
    heights = []
    for alpha, *pair in zip(every, theta, found, strict=True):
        m.alpha = alpha
        heights.append([m.log_density(x) for x in pair])
    loss = max(loop - searched for loop, searched in heights)
    yield between("loop above `preview`, whole grid", title, loss, -np.inf, 1e-10, "≤ 1e-10")


@equation(
    "FP-13",
    r"p_\alpha \propto \exp(\theta^\top t(\lambda_\alpha) - A(\theta)) \;\Rightarrow\;"
    r" \nabla A(\hat\theta_\alpha) = t(\lambda_\alpha)",
)
def fp_13():
    """The mode of any exponential family in closed form. Symbolically for the paper's two examples
    and for Gamma-Poisson; numerically for all families of the library, whose Beta, Gamma and
    Dirichlet modes are those in π and ρ, that is, of the density in these variables."""
    theta, a, b = sp.symbols("theta a b", positive=True)
    bernoulli = (a + b - 2) * sp.log(1 + sp.exp(theta))
    poisson = b * sp.exp(theta)
    yield symbolic(
        "∇A(log((a−1)/(b−1))) = a − 1, Bernoulli",
        sp.diff(bernoulli, theta).subs(theta, sp.log((a - 1) / (b - 1))) - (a - 1),
    )
    yield symbolic(
        "∇A(log((a−1)/b)) = a − 1, Poisson",
        sp.diff(poisson, theta).subs(theta, sp.log((a - 1) / b)) - (a - 1),
    )
    x = sp.Matrix(sp.symbols("x1 x2"))
    p, q, r = sp.symbols("p q r")
    H, m = sp.Matrix([[p, q], [q, r]]), sp.Matrix(sp.symbols("m1 m2"))
    A = (x.T * H * x)[0] / 2
    slope = sp.Matrix([sp.diff(A, xi) for xi in x])
    yield symbolic("∇A(m) = Hm, Gaussian", slope.subs(dict(zip(x, m, strict=True))) - H * m)

    s = fine_tuned("logistic")
    q = bm.merge(s.posteriors, s.alpha, s.prior)
    t, H = (np.asarray(leaf) for leaf in q.natural_parameters)
    yield equal("∇A = t(λ)", "Gaussian", H @ np.asarray(q.mode()), t)

    alpha = [0.8, 0.7]
    coins = [bm.Beta.from_concentrations(3.0, 5.0), bm.Beta.from_concentrations(7.0, 2.0)]
    merged = bm.merge(coins, alpha)
    lambda_a, lambda_b = 0.8 * 2 + 0.7 * 6, 0.8 * 4 + 0.7 * 1
    mode = float(merged.mode())
    yield equal("logit of the mode", "Beta", np.log(mode / (1 - mode)), np.log(lambda_a / lambda_b))
    rates = [bm.Gamma.from_shape_rate(3.0, 2.0), bm.Gamma.from_shape_rate(5.0, 1.0)]
    yield equal(
        "log of the mode",
        "Gamma",
        jnp.log(bm.merge(rates, alpha).mode()),
        np.log((0.8 * 2 + 0.7 * 4) / (0.8 * 2 + 0.7 * 1)),
    )
    dice = [
        bm.Dirichlet.from_concentrations(jnp.array(c)) for c in ([2.0, 3.0, 4.0], [5.0, 2.0, 3.0])
    ]
    counts = 0.8 * np.array([1, 2, 3]) + 0.7 * np.array([4, 1, 2])
    yield equal("mode", "Dirichlet", bm.merge(dice, alpha).mode(), counts / counts.sum())


class BetaMixtures:
    """Two mixtures of three Betas: a product with several modes on [0, 1]."""

    a = np.array([[2.0, 9.0, 30.0], [4.0, 20.0, 12.0]])
    b = np.array([[8.0, 9.0, 6.0], [16.0, 7.0, 12.0]])
    weights = np.array([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3]])
    alpha = np.array([0.9, 0.6])

    def __init__(self):
        self.prior, self.gamma = None, 0.0
        self.components = [
            [bm.Beta.from_concentrations(float(a), float(b)) for a, b in zip(*pair, strict=True)]
            for pair in zip(self.a, self.b, strict=True)
        ]
        pairs = zip(self.weights, self.components, strict=True)
        self.mixtures = [bm.Mixture(*pair) for pair in pairs]

    def under_prior(self):
        """The same beside Beta(2, 2)^γ, γ = 1 − Σα = −½."""
        self.prior, self.gamma = bm.Beta.from_concentrations(2.0, 2.0), 1 - self.alpha.sum()
        return self

    def log_components(self, p):
        return np.log(self.weights) + scipy.stats.beta(self.a, self.b).logpdf(p)

    def log_density(self, p):
        prior = self.gamma * scipy.stats.beta(2, 2).logpdf(p)
        return prior + self.alpha @ scipy.special.logsumexp(self.log_components(p), axis=1)

    def exponents(self, p):
        """π̂_tkα_t."""
        return scipy.special.softmax(self.log_components(p), axis=1) * self.alpha[:, None]

    def step(self, p):
        """FP-14: the library's merge of the components, weighted by π̂_tkα_t."""
        components = [q for mixture in self.components for q in mixture]
        return float(bm.merge(components, self.exponents(p).ravel(), self.prior).mode())

    def highest(self, p):
        """FP-14: where γλ_0ᵀT + Σπ̂_tkα_tλ_tkᵀT, T = (log p, log(1 − p)), has no slope."""
        s = self.gamma + np.sum(self.exponents(p) * (self.a - 1))
        f = self.gamma + np.sum(self.exponents(p) * (self.b - 1))
        return scipy.optimize.brentq(lambda x: s / x - f / (1 - x), 1e-9, 1 - 1e-9, xtol=1e-15)


@equation(
    "FP-14",
    r"\theta \leftarrow \arg\max_\theta"
    r" \sum_{t,k}\hat\pi_{tk}\alpha_t\lambda_{tk}^\top T(\theta)",
)
def fp_14():
    """The same for mixtures of any exponential family: a merge of all components with weights
    π̂_tkα_t. For Gaussians it is FP-12, for K = 1 the closed form in one step; for Betas every step
    climbs, to a maximum that a fine grid confirms. Likewise `minorizer(θ).mode()` and `mode` of the
    product of `Mixture`s of Betas, with p_0 = Beta(2, 2) and γ = −½ too: the step is where the
    printed sum, with γλ_0ᵀT(θ) in it, has no slope, by scipy."""
    m = GaussianMixtures(1)
    for theta in m.means[0]:
        components = [
            bm.FullGaussian.from_mean_precision(jnp.asarray(mean), jnp.asarray(H))
            for mean, H in zip(m.means.reshape(-1, 2), m.precisions.reshape(-1, 2, 2), strict=True)
        ]
        weights = (m.responsibilities(theta) * m.alpha[:, None]).ravel()
        yield equal(
            "`merge` of components is FP-12",
            "Gaussians in the plane",
            bm.merge(components, weights).mode(),
            m.step(theta),
        )
    single = GaussianMixtures(2, K=1)
    start = np.array([3.0, -3.0])
    closed = solve(
        np.einsum("t,tij->ij", single.alpha, single.precisions[:, 0]),
        np.einsum("t,tij,tj->i", single.alpha, single.precisions[:, 0], single.means[:, 0]),
    )
    yield equal("K = 1: one step", "Gaussians in the plane", single.step(start), closed)
    gaussians = [
        bm.FullGaussian.from_mean_precision(jnp.asarray(mean), jnp.asarray(H))
        for mean, H in zip(single.means[:, 0], single.precisions[:, 0], strict=True)
    ]
    yield equal(
        "K = 1: `merge`",
        "Gaussians in the plane",
        bm.merge(gaussians, single.alpha).mode(),
        single.climb(start)[0],
    )
    yield equal(
        "K = 1: one step of `Mixture`s",
        "Gaussians in the plane",
        single.merge().minorizer(jnp.asarray(start)).mode(),
        closed,
    )
    coins = [bm.Beta.from_concentrations(3.0, 5.0), bm.Beta.from_concentrations(7.0, 2.0)]
    product = bm.merge([bm.Mixture([1.0], [q]) for q in coins], [0.9, 0.6])
    counts = 0.9 * np.array([2.0, 4.0]) + 0.6 * np.array([6.0, 1.0])
    found = [product.minorizer(jnp.array(0.1)).mode(), product.mode()]
    yield equal(
        "K = 1: one step, and `mode`, of `Mixture`s", "Betas", found, 2 * [counts[0] / sum(counts)]
    )

    m, ends = BetaMixtures(), []
    for p in (0.1, 0.4, 0.7, 0.9):
        values = [m.log_density(p)]
        for _ in range(60):
            p = m.step(p)
            values.append(m.log_density(p))
        yield between(
            f"largest fall, end at {p:.2f}",
            "Betas",
            -np.diff(values).min(),
            -np.inf,
            1e-12,
            "≤ 1e-12",
        )
        ends.append(values[-1])
    grid = np.linspace(0.001, 0.999, 20_000)
    logs = np.log(m.weights) + scipy.stats.beta(m.a, m.b).logpdf(grid[:, None, None])
    highest = (scipy.special.logsumexp(logs, axis=2) @ m.alpha).max()
    yield between(
        "best of a grid, less best found", "Betas", highest - max(ends), -1e-3, 1e-9, "≤ 1e-9"
    )

    step = jax.jit(lambda product, p: product.minorizer(p).mode())
    starts = np.array([0.1, 0.4, 0.7, 0.9])
    for title in ("Betas", "Betas, γ = −½"):
        m = m if title == "Betas" else m.under_prior()
        product, falls, ends = bm.merge(m.mixtures, m.alpha, m.prior), [], []
        yield equal(
            "`minorizer(p).mode()` at every start",
            title,
            [step(product, jnp.asarray(p)) for p in starts],
            [m.highest(p) for p in starts],
        )
        for p in starts:
            path = [jnp.asarray(p)]
            for _ in range(60):
                path.append(step(product, path[-1]))
            falls.append(-np.diff([m.log_density(float(p)) for p in path]).min())
            for _ in range(60):
                p = m.highest(p)
            ends.append(p)
        yield between("largest fall along these", title, max(falls), -np.inf, 1e-12, "≤ 1e-12")
        found = product.mode(starts=jnp.asarray(starts))
        yield equal(
            "`mode`, the best of the same starts", title, found, max(ends, key=m.log_density)
        )
