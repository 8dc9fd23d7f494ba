"""The eleven misprints: what is printed fails, what is meant holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import sympy as sp

import bayesmerge as bm
from ledger.book import between, differs, equal, equation, stationary, symbolic
from ledger.fp import GaussianMixtures
from ledger.gm import solve
from ledger.gma import regression, removal
from ledger.problems import (
    ALL,
    data,
    fine_tuned,
    from_scratch,
    gradient_of,
    half_square,
    minimise,
)


@equation(
    "Misprint 1",
    r"\text{GM-2 prints } \alpha_1\ell_1(\theta) + \alpha_2\ell_2(\theta_1)"
    r" + \tfrac12\|\theta\|^2",
)
def misprint_1():
    """In GM-2 the second loss is printed at θ_1, a fixed point. Then it is a constant, the minimum
    does not depend on task 2 at all, and the stationarity condition that the paper derives from it
    (GM-3) is false. The loss is meant at θ: ℓ_2(θ)."""
    for problem in ALL:
        s = from_scratch(problem)
        first_only = bm.JointTarget(s.losses[:1], s.alpha[:1])
        printed = minimise(first_only, s.prior, jnp.asarray(s.thetas[0]))
        pull = lambda x, s=s: -sum(a * s.gradient(t, x) for t, a in enumerate(s.alpha))  # noqa: E731
        yield differs("printed: GM-3 fails by", s.title, pull(printed), np.asarray(printed))
        yield equal("corrected: GM-3 holds", s.title, pull(s.joint), s.joint)


@equation(
    "Misprint 2",
    r"\text{GMA §1.1 prints } \theta_0 = -\nabla\ell_{\mathrm{LLM}}(\theta_0);"
    r" \quad \delta\theta_0 = -\nabla\ell_{\mathrm{LLM}}(\theta_0)",
)
def misprint_2():
    """The base model is regularised by ½δ‖θ‖² (GM-5, GMA-7), so the gradient balances δθ_0. The
    printed condition forgets δ, and holds only for δ = 1."""
    for problem in ALL:
        r = removal(problem)
        slope = r.gradient(r.kept, r.base) + r.gradient(r.gone, r.base)
        yield differs("printed, δ = ½", r.title, -slope, r.base)
        yield equal("corrected", r.title, -slope, r.delta * r.base)


@equation(
    "Misprint 3",
    r"\text{GMA §1.4 prints } \theta_{\setminus t} = \bar H_{\setminus t}^{-1}X^\top y;"
    r" \quad \bar H_{\setminus t}^{-1}X_{\setminus t}^\top y_{\setminus t}",
)
def misprint_3():
    """Without task t the normal equations have the remaining rows on both sides. The printed
    solution removes the rows from the matrix and leaves them in the response. (Likewise the
    regulariser in H̄ is ½δ‖θ‖², as its own Hessian XᵀX + δI says, and not ½‖θ‖².)"""
    X, y, _, rest, y_rest, _ = regression()
    delta, title = 0.5, "diabetes, 60 of 294 rows removed"
    objective = lambda x: 0.5 * jnp.sum((y_rest - rest @ x) ** 2) + 0.5 * delta * x @ x  # noqa: E731
    H = np.asarray(jax.hessian(objective)(jnp.zeros(11)))
    yield equal("H̄_∖t = X_∖tᵀX_∖t + δI", title, rest.T @ rest + delta * np.eye(11), H)
    right = solve(H, -gradient_of(objective, np.zeros(11)))
    yield differs("printed", title, solve(H, X.T @ y), right)
    yield equal("corrected", title, solve(H, rest.T @ y_rest), right)
    unscaled = solve(rest.T @ rest + np.eye(11), rest.T @ y_rest)
    yield differs("with ½‖θ‖² for ½δ‖θ‖²", title, unscaled, right, by=1e-4)


@equation("Misprint 4", r"\text{GMA §1.5 prints } H_t = X_tX_t^\top; \quad H_t = X_t^\top X_t")
def misprint_4():
    """The Hessian of ½‖y − Xθ‖² in θ has one row and column for every parameter: XᵀX. The printed
    XXᵀ has one for every example (it is the Gram matrix of kernel methods); even with as many
    examples as parameters it is another matrix."""
    X, y = (z[:11] for z in data("least squares")[0])
    H = jax.hessian(lambda x: 0.5 * jnp.sum((y - X @ x) ** 2))(jnp.zeros(11))
    yield differs("printed, 11 rows", "diabetes", X @ X.T, np.asarray(H))
    yield equal("corrected", "diabetes", X.T @ X, np.asarray(H))


@equation(
    "Misprint 5",
    r"\text{GMA-19 prints } e^{-\frac12\alpha_t\|\theta-\theta_t\|^2_{H_t}};"
    r" \quad e^{-\alpha_t[\nabla\ell_t(\theta_t)^\top(\theta-\theta_t)"
    r" + \frac12\|\theta-\theta_t\|^2_{H_t}]}",
)
def misprint_5():
    """Expanding ℓ_t at θ_t leaves a linear term, for θ_t is not a minimum of ℓ_t: it minimises ℓ_t
    plus the regulariser, so ∇ℓ_t(θ_t) = −H_0(θ_t − θ_0). Drop it, as printed, and the mode is
    (H̄)⁻¹(H_0θ_0 + Σα_tH_tθ_t), which is not GM-10 and not Theorem 1, not even for least squares.
    Keep it, and p_0 Π exp(−α_tℓ̂_t) is p_0^γ Π N(θ_t, (H_0+H_t)⁻¹)^{α_t}, whose mode is GM-10."""
    for problem in ALL:
        s = fine_tuned(problem)
        H = [s.hessian(t, s.thetas[t]) for t in range(2)]
        H_bar = s.H0 + s.alpha[0] * H[0] + s.alpha[1] * H[1]
        matched = np.asarray(bm.merge(s.posteriors, s.alpha, s.prior).mode())
        weighted = sum(a * h @ theta for a, h, theta in zip(s.alpha, H, s.thetas, strict=True))
        printed = solve(H_bar, s.H0 @ s.base + weighted)
        yield differs(
            "printed: its mode, from the base", s.title, printed - s.base, matched - s.base
        )
        slopes = sum(a * s.gradient(t, s.thetas[t]) for t, a in enumerate(s.alpha))
        kept = solve(H_bar, s.H0 @ s.base + weighted - slopes)
        yield equal("corrected: GM-10", s.title, kept, matched)
        if problem == "least squares":
            yield differs(
                "printed, against joint training", s.title, printed - s.base, s.joint - s.base
            )
            yield equal("corrected, against joint training", s.title, kept, s.joint)


@equation(
    "Misprint 6",
    r"\text{GMA §1.5 prints mismatch} = +\nabla\log[p(\theta|D_t)/p_0(\theta)];"
    r" \quad = -\nabla\log[p(\theta|D_t)/p_0(\theta)] - \nabla\ell_t(\theta_t)",
)
def misprint_6():
    """The ratio of posterior and prior is the likelihood, whose log has the gradient −∇ℓ_t(θ). The
    mismatch is ∇ℓ_t(θ) − ∇ℓ_t(θ_t): the sign is printed wrongly, and the constant at θ_t, which is
    not zero, is missing."""
    for problem in ALL:
        s = fine_tuned(problem)
        gap = s.gradient(0, s.joint) - s.gradient(0, s.thetas[0])

        def log_ratio(x, s=s):
            log_p0 = -half_square(x - s.base, s.H0)
            return (log_p0 - s.losses[0].total(x)) - log_p0

        slope = gradient_of(log_ratio, s.joint)
        yield differs("printed", s.title, slope, gap)
        yield differs("sign alone mended", s.title, -slope, gap)
        tuned = s.H0 @ (s.thetas[0] - s.base)
        yield equal("corrected, with H_0(θ_t − θ_0) for −∇ℓ_t(θ_t)", s.title, tuned - slope, gap)


@equation(
    "Misprint 7",
    r"\text{GMA §1.6 prints } \arg\min_\theta \gamma\log p_0(\theta)"
    r" + \sum_t\alpha_t\log p(\theta|D_t); \quad \arg\max_\theta",
)
def misprint_7():
    """A sum of log-densities is maximised. It has no minimum: away from the solution it falls
    without bound in every direction."""
    s = fine_tuned("least squares")
    objective = bm.merge(s.posteriors, s.alpha, s.prior).log_density
    top = float(objective(jnp.asarray(s.joint)))
    directions = np.random.default_rng(0).normal(size=(50, s.base.size))
    for distance in (1.0, 1e3):
        rise = max(float(objective(jnp.asarray(s.joint + distance * d))) - top for d in directions)
        yield between(f"largest rise at distance {distance:g}", s.title, rise, -np.inf, 0.0, "< 0")
    scale = s.H0 @ (s.joint - s.base)
    yield stationary("the maximum is the joint solution", s.title, objective, s.joint, scale)


@equation(
    "Misprint 8",
    r"\text{FP A.2 prints } \hat\pi_\alpha = \log\frac{a_\alpha-1}{a_\alpha+b_\alpha-2};"
    r" \quad \hat\pi_\alpha = \frac{a_\alpha-1}{a_\alpha+b_\alpha-2}",
)
def misprint_8():
    """There is no logarithm: the printed number is negative and no probability. And a mode belongs
    to the space in which the density is drawn. The density of π peaks at (a−1)/(a+b−2). That of
    θ = logit π, which carries the factor dπ/dθ = π(1−π), peaks at log(a/b), which is not the logit
    of the first: log((a−1)/(b−1)), FP-13, is the mode in π, told in the coordinate θ."""
    a, b = 5.8, 4.4
    p, t = sp.symbols("p t", positive=True)
    A, B = sp.symbols("a b", positive=True)
    log_density = (A - 1) * sp.log(p) + (B - 1) * sp.log(1 - p)
    mode = (A - 1) / (A + B - 2)
    yield symbolic("slope of log Beta at (a−1)/(a+b−2)", sp.diff(log_density, p).subs(p, mode))
    sigmoid = 1 / (1 + sp.exp(-t))
    in_logit = log_density.subs(p, sigmoid) + sp.log(sigmoid * (1 - sigmoid))
    yield symbolic(
        "slope in logit π at log(a/b)", sp.simplify(sp.diff(in_logit, t)).subs(t, sp.log(A / B))
    )
    grid = np.linspace(1e-4, 1 - 1e-4, 200_001)
    peak = grid[np.argmax(scipy.stats.beta(a, b).pdf(grid))]
    q = bm.Beta.from_concentrations(a, b)
    yield differs("printed, against a grid", "Beta(5.8, 4.4)", np.log((a - 1) / (a + b - 2)), peak)
    yield equal(
        "corrected, against a grid", "Beta(5.8, 4.4)", (a - 1) / (a + b - 2), peak, within=1e-5
    )
    yield equal("`Beta.mode()`", "Beta(5.8, 4.4)", q.mode(), (a - 1) / (a + b - 2))
    logits = np.linspace(-3, 3, 200_001)
    prob = scipy.special.expit(logits)
    top = logits[np.argmax(scipy.stats.beta(a, b).logpdf(prob) + np.log(prob * (1 - prob)))]
    yield equal(
        "log(a/b), against a grid in logit π", "Beta(5.8, 4.4)", np.log(a / b), top, within=1e-4
    )
    yield differs(
        "log((a−1)/(b−1)), against that grid", "Beta(5.8, 4.4)", np.log((a - 1) / (b - 1)), top
    )


@equation(
    "Misprint 9",
    r"\text{FP A.2 calls } a_\alpha = \sum_t\alpha_t a_t \text{ an average};"
    r" \quad a_\alpha - 1 = \sum_t\alpha_t(a_t - 1)",
)
def misprint_9():
    """What adds is the natural parameter λ = a − 1. Then a_α = 1 + Σα_t(a_t − 1), which is the
    weighted sum of the a_t only when Σα_t = 1. For weights (1, 1), which pool the flips of two
    coins under flat priors, the printed form counts one flip too many on either side."""
    a, b = np.array([3.0, 7.0]), np.array([5.0, 2.0])
    coins = [bm.Beta.from_concentrations(*pair) for pair in zip(a, b, strict=True)]
    grid = np.linspace(0.1, 0.9, 9)

    def concentrations(alpha):
        leaves = bm.merge(coins, alpha).natural_parameters
        return 1 + np.array([float(x) for x in leaves])

    product = scipy.stats.beta(a[0], b[0]).logpdf(grid) + scipy.stats.beta(a[1], b[1]).logpdf(grid)
    both = concentrations([1.0, 1.0])
    right = scipy.stats.beta(*both).logpdf(grid)
    wrong = scipy.stats.beta(a.sum(), b.sum()).logpdf(grid)
    yield differs("Σα = 2: printed", "Beta", np.diff(wrong), np.diff(product))
    yield equal("Σα = 2: corrected", "Beta", np.diff(right), np.diff(product))
    half = concentrations([0.5, 0.5])
    yield equal("Σα = 1: both agree", "Beta", half, [a.mean(), b.mean()])


@functools.cache
def unnormalised(seed):
    """Algorithm 1 with exp(−½‖θ − θ_tk‖²_{H_tk}) for the components, as line 4 has it."""
    m = GaussianMixtures(seed, T=3, diagonal=True)
    theta = m.means.mean((0, 1))
    for _ in range(3000):
        away = theta - m.means
        distance = np.einsum("tki,tkij,tkj->tk", away, m.precisions, away)
        pi = scipy.special.softmax(np.log(m.weights) - 0.5 * distance, axis=1)
        theta = m.step(theta, pi)
    return theta


@equation(
    "Misprint 10",
    r"\text{FP Algorithm 1, line 4: } \hat\pi_{tk} \propto \pi_k |H_{tk}|^{\frac12}"
    r" e^{-\frac12\|\theta-\theta_{tk}\|^2_{H_{tk}}}, \quad \sum_k\hat\pi_{tk} = 1",
)
def misprint_10():
    """Line 4 writes p and p̃ for the same thing. The responsibilities need the normalised
    components: without |H_tk|^½ a narrow component gets too little, and the iteration ends where
    the density of the product still has a slope. They sum to one over k for each task, not over
    all. Those of `Mixture` sum to one over its components and exceed the printed ones, in the
    logarithm and up to a constant, by ½ log det H_tk; their merge ends where there is no slope."""
    for seed in (5, 6):
        m = GaussianMixtures(seed, T=3, diagonal=True)
        title = "three mixtures of three Gaussians"
        printed, right = unnormalised(seed), m.climb(m.means.mean((0, 1)), 3000)[0]
        scale = np.linalg.norm(m.precisions[0, 0])
        yield between(
            "without the determinants: slope at the end",
            title,
            np.linalg.norm(m.gradient(printed)) / scale,
            1e-3,
            np.inf,
            "> 1e-3",
        )
        yield between(
            "with them: slope at the end",
            title,
            np.linalg.norm(m.gradient(right)) / scale,
            0.0,
            1e-9,
            "≤ 1e-9",
        )
        joint = scipy.special.softmax(m.log_components(right).ravel()).reshape(3, 3)
        yield differs(
            "normalised over all t and k: the next step moves", title, m.step(right, joint), right
        )
        yield equal("normalised over k: it stays", title, m.step(right), right)
        mixtures, start = m.mixtures, m.means.mean((0, 1))
        ours = np.stack([q.responsibilities(jnp.asarray(start)) for q in mixtures])
        away = start - m.means
        distance = np.einsum("tki,tkij,tkj->tk", away, m.precisions, away)
        printed = scipy.special.softmax(np.log(m.weights) - 0.5 * distance, axis=1)
        excess = np.diff(np.log(ours) - np.log(printed), axis=1)
        halves = np.diff(0.5 * np.linalg.slogdet(m.precisions)[1], axis=1)
        yield equal("`responsibilities`: sums over k", title, ours.sum(1), np.ones(3))
        yield differs("printed, against these", title, printed, ours)
        yield equal("log of these over the printed, against ½ log det H", title, excess, halves)
        merged = np.asarray(m.merge().mode(starts=jnp.asarray(start)[None]))
        yield between(
            "`merge`: slope at the end",
            title,
            np.linalg.norm(m.gradient(merged)) / scale,
            0.0,
            1e-9,
            "≤ 1e-9",
        )


@equation(
    "Misprint 11",
    r"\text{FP-10 with } p_0 = N(0, I) \text{ and } \sum_t\alpha_t = 1 - \gamma:"
    r" \quad \hat\theta_\alpha = (\gamma I + \sum_t\alpha_t H_t)^{-1}\sum_t\alpha_t H_t\theta_t",
)
def misprint_11():
    """FP says that FP-10 is the merge under p_0 = N(0, I) when the weights sum to 1 − γ. As printed
    it holds for γ = 0 only. With H_t the precision of q_t itself, the prior enters with its power:
    γI stands beside the sum."""
    for problem in ALL:
        s = from_scratch(problem)
        H = [np.asarray(q.precision.value) for q in s.posteriors]
        merged = np.asarray(bm.merge(s.posteriors, s.alpha, s.prior).mode())
        gamma = 1 - s.alpha.sum()
        total = sum(a * h for a, h in zip(s.alpha, H, strict=True))
        pulls = sum(a * h @ theta for a, h, theta in zip(s.alpha, H, s.thetas, strict=True))
        weighted = bm.schemes.hessian_weighted(
            list(map(jnp.asarray, s.thetas)), H, s.alpha, s.prior
        )
        corrected = solve(gamma * np.eye(s.base.size) + total, pulls)
        yield differs("printed, γ = −0.3", s.title, solve(total, pulls), merged, by=1e-3)
        yield equal("corrected", s.title, corrected, merged)
        yield equal("`hessian_weighted` with the prior", s.title, weighted.mode(), merged)
        if problem == "least squares":
            yield equal("corrected: joint training", s.title, corrected, s.joint)
