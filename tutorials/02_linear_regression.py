# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exact on linear regression
#
# Three hospitals may not share their patients' data, only what they fitted to them. Can the
# regression on all patients be put together from three regressions? For a linear model with a ridge
# prior it can, to the last digit, for any split however unfair, and for any weights. Averaging the
# three models cannot.
#
# You will see why merging is exact here, which assumption each cheaper scheme makes about the
# posteriors and what that costs, and a picture of the reason: *gradient mismatch*, the identity
# GM-8 that gave *Model Merging by Gradient Matching* its name. The three tasks are scikit-learn's
# diabetes data, ten measurements of 442 patients and the progress of their disease a year later.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge, RidgeCV

import bayesmerge as bm

jax.config.update("jax_enable_x64", True)
plt.style.use("bayesmerge.style")
BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"

# %% [markdown]
# ## An unfair split
#
# A quarter of the patients are kept for testing. Inputs and target are standardised on the rest,
# and a column of ones is the intercept. Then the training patients are *sorted by body-mass index*
# and cut: the leaner half, the next 30%, and the heaviest 20%. No two tasks see alike patients.

# %%
raw = load_diabetes(scaled=False)
is_test = np.random.default_rng(0).permutation(len(raw.target)) < 110
bmi_column = raw.feature_names.index("bmi")


def standardised(values):
    return (values - values[~is_test].mean(0)) / values[~is_test].std(0)


everything = np.c_[np.ones(len(raw.data)), standardised(raw.data)]
X, y = everything[~is_test], standardised(raw.target)[~is_test]
X_test, y_test = everything[is_test], standardised(raw.target)[is_test]

bmi = raw.data[~is_test, bmi_column]
by_bmi = np.argsort(bmi, kind="stable")
cuts = np.cumsum([round(0.5 * len(y)), round(0.3 * len(y))])
rows = dict(zip(["low", "middle", "high"], np.split(by_bmi, cuts), strict=True))

for name, i in rows.items():
    print(
        f"{name:8s}{len(i):4d} patients, body-mass index {bmi[i].min():.1f} to {bmi[i].max():.1f}"
    )

# %% [markdown]
# ## Fit each, and multiply
#
# Each task minimises $\ell_t(\theta) + \frac{1}{2}\|\theta - \theta_0\|^2_{H_0}$ (GM-6) with
# $\ell_t(\theta) = \frac{1}{2}\|y_t - X_t\theta\|^2$, $\theta_0 = 0$ and $H_0 = \delta I$, which is
# ridge regression, with noise of unit variance. We take $\delta = 25$, near what cross-validation
# chooses. The loss is a parabola, so its posterior is exactly the Gaussian that Laplace's method
# gives: $\mathcal N(\theta_t, (H_0 + H_t)^{-1})$ with $H_t = X_t^\top X_t$.
#
# In natural parameters, precision times mean and precision, this is
#
# $$\lambda_t = (H_0\theta_0 + X_t^\top y_t, \; H_0 + X_t^\top X_t), \qquad
# \lambda_\alpha = \gamma\lambda_0 + \sum_t\alpha_t\lambda_t
# = (H_0\theta_0 + \sum_t\alpha_tX_t^\top y_t, \; H_0 + \sum_t\alpha_tX_t^\top X_t).$$
#
# The sums on the right are those of the whole data set. This is GMA §1.6, and nothing in it asks
# the tasks to be alike, or the model to be true.

# %%
delta, size = 25.0, X.shape[1]
base = jnp.zeros(size)
prior = bm.IsotropicGaussian.from_mean_precision(base, delta)
ones = dict.fromkeys(rows, 1.0)


def model(theta, x):
    return x @ theta


tasks = {t: bm.Target.supervised(model, "gaussian", (X[i], y[i])) for t, i in rows.items()}
q = {t: bm.laplace(task, prior) for t, task in tasks.items()}
theta = {t: q[t].mode() for t in q}

merged = bm.merge(q, ones, prior).mode()

linear = sum(X[i].T @ y[i] for i in rows.values())
precision = delta * np.eye(size) + sum(X[i].T @ X[i] for i in rows.values())
by_hand = np.linalg.solve(precision, linear)

joint = Ridge(alpha=delta, fit_intercept=False, solver="cholesky").fit(X, y).coef_
chosen = RidgeCV(np.logspace(0, 3, 31), fit_intercept=False).fit(X, y).alpha_

print("cross-validation chooses δ =", round(float(chosen), 1))
print(f"merged against scikit-learn's ridge on all patients: {np.abs(merged - joint).max():.1e}")
print("\n           1 " + "".join(f"{name:>6s}" for name in raw.feature_names))
for name, coefficients in {**theta, "merged": merged, "joint": joint}.items():
    print(f"{name:7s}" + "".join(f"{c:6.2f}" for c in coefficients))

# %% [markdown]
# ## At any weights
#
# Joint training at weights $\alpha$ minimises
# $\sum_t\alpha_t\ell_t(\theta) + \frac{1}{2}\|\theta - \theta_0\|^2_{H_0}$ (GM-7). The merged
# model is its solution for every $\alpha$, so three fits answer for all weightings at once: two
# hundred of them, drawn between 0 and 2, in one call. For one more we run the optimiser on the
# weighted loss, `JointTarget`, as somebody would who does not know that there is a closed form.

# %%
alphas = np.random.default_rng(1).uniform(0, 2, (200, 3))
merged_all = bm.merge(q, alphas, prior).mode()
solved_all = [
    np.linalg.solve(
        delta * np.eye(size)
        + sum(a * X[i].T @ X[i] for a, i in zip(alpha, rows.values(), strict=True)),
        sum(a * X[i].T @ y[i] for a, i in zip(alpha, rows.values(), strict=True)),
    )
    for alpha in alphas
]
largest = np.abs(merged_all - np.array(solved_all)).max()

uneven = {"low": 0.2, "middle": 1.7, "high": 0.9}
trained = bm.find_mode(bm.JointTarget(tasks, uneven), prior, method="newton").params
uneven_error = np.abs(bm.merge(q, uneven, prior).mode() - trained).max()
print(f"200 weightings, largest difference from the solution  {largest:.1e}")
print(f"α = (0.2, 1.7, 0.9), difference from joint training   {uneven_error:.1e}")

# %% [markdown]
# ## Why averaging fails
#
# Every scheme below is the same product, with another choice of what a posterior is. What is left
# out comes back as an error.
#
# - *Simple average*, $\sum_t\alpha_t\theta_t$ with $\alpha_t = 1/3$ (FP-2, FP-9): each posterior is
#   $\mathcal N(\theta_t, I)$. All tasks know equally much about every coefficient.
# - *Task arithmetic*, $\theta_0 + \sum_t(\theta_t - \theta_0)$ (FP-3): each is
#   $\mathcal N(\theta_t, H_0^{-1})$, as if the data had taught the task nothing beyond the prior's
#   precision. With three tasks it adds up three versions of the same answer.
# - *Fisher average*, $\sum_t\bar F^{-1}F_t\theta_t$ (GM §2): with the diagonal of the Fisher
#   information as $F_t$, which here is that of $H_t$. Often it is a *mean* over examples, so that a
#   task of 66 patients weighs as much as one of 166; the *sum* keeps the counts. There is no prior
#   in it, although each $\theta_t$ has been pulled towards $\theta_0$ by one.
# - *Diagonal Hessian*: precision $H_0 + \mathrm{diag}\,H_t$, and the prior counted once. What is
#   missing are the correlations between coefficients.
# - *Full Hessian, no prior*: all of $H_t$, but each $\theta_t$ has been pulled by the prior, and
#   that is not taken back.
# - *GMA-19 as printed*: the prior times $\prod_t\mathcal N(\theta_t, H_t^{-1})^{\alpha_t}$. The
#   linear term of the expansion, $\nabla\ell_t(\theta_t) = -H_0(\theta_t - \theta_0)$, is not
#   zero but has been dropped (misprint 5), and so the prior pulls once more.
# - *Full Hessian*: nothing is left out. This is GM-10.

# %%
H = {t: (q[t] / prior).precision.value for t in q}
diag_H = {t: jnp.diag(H[t]) for t in H}
mean_fisher = {t: diag_H[t] / len(rows[t]) for t in rows}
thirds = dict.fromkeys(rows, 1 / 3)

schemes = {
    "simple average": bm.schemes.average(theta, thirds),
    "task arithmetic": bm.schemes.task_arithmetic(theta, ones, base),
    "Fisher average, means": bm.schemes.fisher_average(theta, mean_fisher, ones),
    "Fisher average, sums": bm.schemes.fisher_average(theta, diag_H, ones),
    "diagonal Hessian": bm.schemes.gradient_matching(theta, diag_H, ones, base, delta),
    "full Hessian, no prior": bm.schemes.hessian_weighted(theta, H, ones),
    "GMA-19 as printed": prior * bm.schemes.hessian_weighted(theta, H, ones),
    "full Hessian": bm.schemes.gradient_matching(theta, H, ones, base, delta),
}
models = {name: np.asarray(p.mode()) for name, p in schemes.items()}


def loss(coefficients, x, targets):
    """Half the mean squared error."""
    return 0.5 * np.mean((x @ coefficients - targets) ** 2)


error = {name: np.linalg.norm(m - joint) / np.linalg.norm(joint) for name, m in models.items()}
on_train = {name: loss(m, X, y) - loss(joint, X, y) for name, m in models.items()}
on_test = {
    name: loss(m, X_test, y_test) - loss(joint, X_test, y_test) for name, m in models.items()
}

print(f"joint: training loss {loss(joint, X, y):.4f}, ", end="")
print(f"test loss {loss(joint, X_test, y_test):.4f}; ", end="")
print(f"predicting the mean: test loss {0.5 * np.mean(y_test**2):.4f}\n")
print(f"{'':24s}{'relative error':>15s}{'train excess':>14s}{'test excess':>14s}")
for name in models:
    print(f"{name:24s}{error[name]:15.1e}{on_train[name]:14.1e}{on_test[name]:14.1e}")

# %%
names, places = list(models), np.arange(len(models))[::-1]
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
left.hlines(places, 0, list(error.values()), color="0.7", lw=1)
left.plot(list(error.values()), places, "o", color="black")
for name, place in zip(names, places, strict=True):
    label = f"{error[name]:.2f}" if error[name] > 0.01 else f"{error[name]:.0e}"
    left.annotate(label, (error[name], place), (7, 0), textcoords="offset points", va="center")
left.set(xlabel="distance to the joint solution, relative", xlim=(-0.03, 1.6), ylim=(-0.6, 7.6))
left.set_yticks(places, names)
for values, marker, label, color, fill in [
    (on_train, "o", "training", BLUE, "white"),
    (on_test, "s", "test", RED, RED),
]:
    right.plot(
        [values[n] for n in names[:-1]], places[:-1], marker, color=color, mfc=fill, label=label
    )
right.text(1.3e-3, 0, "zero to rounding", va="center")
right.set(xscale="log", xlabel="loss above that of the joint solution", xlim=(1e-3, 1.5))
_ = right.legend(loc="lower right")

# %% [markdown]
# Task arithmetic is worse than predicting the mean for everybody. The others are usable, at some
# cost: on new patients the simple average loses more than a tenth of the joint solution's loss. The
# diagonal, with the right prior, is further away than the full matrix with the wrong one, so here
# correlations matter more. Some of the six measurements of blood serum (s1 to s6) are strongly
# correlated, and within every task body-mass index is correlated with the column of ones. Nor does
# getting nearer always pay at once: with its counts the Fisher average is closer to the joint
# solution than without, and does slightly worse on the test patients.
#
# The averages are compared with the joint solution at $\alpha = (1, 1, 1)$, since that is what one
# would like to have. At $\alpha_t = 1/3$ joint training is ridge regression with $3\delta$, and the
# simple average misses that as well.
#
# ## A picture in two coefficients
#
# Keep only the intercept and the slope of body-mass index. Since the loss is a parabola its
# expansion is the same at every point, so `expand` at zero replaces three fits.

# %%
pair = [0, 1 + bmi_column]
prior2 = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), delta)
tasks2 = {
    t: bm.Target.supervised(model, "gaussian", (X[np.ix_(i, pair)], y[i])) for t, i in rows.items()
}
q2 = {t: prior2 * bm.expand(task, jnp.zeros(2)) for t, task in tasks2.items()}
theta2 = {t: q2[t].mode() for t in q2}
diag2 = {
    t: bm.DiagonalGaussian.from_mean_precision(theta2[t], jnp.diag(q2[t].precision.value))
    for t in q2
}
joint2 = jnp.asarray(
    Ridge(alpha=delta, fit_intercept=False, solver="cholesky").fit(X[:, pair], y).coef_
)
average2 = bm.schemes.average(theta2, thirds).mode()
diagonal2 = bm.merge(diag2, ones, prior2).mode()

colors = dict(zip(rows, (BLUE, GREEN, RED), strict=True))
scale = raw.data[~is_test, bmi_column].std()
centre = bmi.mean()


def draw_line(ax, coefficients, span, **style):
    ends = np.asarray(span)
    ax.plot(ends, coefficients[0] + coefficients[1] * (ends - centre) / scale, **style)


fig, ax = plt.subplots(figsize=(7, 3.6))
for t, i in rows.items():
    ax.plot(bmi[i], y[i], ".", color=colors[t], ms=3, alpha=0.5)
    draw_line(
        ax, theta2[t], (bmi[i].min(), bmi[i].max()), color=colors[t], lw=3, label=f"{t} alone"
    )
span = (bmi.min(), bmi.max())
draw_line(ax, average2, span, color="0.45", ls=":", label="simple average")
draw_line(ax, diagonal2, span, color="0.45", ls="--", label="diagonal Hessian")
draw_line(ax, joint2, span, color="black", label="joint = full Hessian")
ax.set(xlabel="body-mass index, kg/m²", ylabel="progress of the disease, standard deviations")
ax.set(ylim=(-2, 3))
_ = ax.legend(loc="upper left", bbox_to_anchor=(1, 1))

# %% [markdown]
# Every task alone finds a slope flatter than that of all patients together. Within a narrow range
# of body-mass index the slope is poorly determined, the prior flattens it, and the intercept takes
# up the rest. So no average of the three slopes, however weighted, reaches the joint one. What each
# task knows best is a *combination* of the two coefficients, very nearly the height of its line
# where its own patients are. That knowledge is in the off-diagonal entries of $H_t$.
#
# ## Gradient mismatch
#
# How far is task arithmetic from the joint solution $\theta^*$? Both are stationary points. From
# $H_0(\theta_t - \theta_0) = -\nabla\ell_t(\theta_t)$ and
# $H_0(\theta^* - \theta_0) = -\sum_t\alpha_t\nabla\ell_t(\theta^*)$ follows GM-8,
#
# $$\theta^* = \theta_0 + \sum_t\alpha_t(\theta_t - \theta_0)
# - \sum_t\alpha_tH_0^{-1}[\nabla\ell_t(\theta^*) - \nabla\ell_t(\theta_t)],$$
#
# exact for every differentiable loss. (With $H_0 = I$ and $\theta_0 = 0$ it is GM-4, for the
# average.) Each task contributes an arrow, namely how much its gradient changes between the place
# where it was trained and the place where the joint solution is. For any other Gaussian posteriors
# $\hat\ell_t = -\log q_t/p_0$ takes the place of the tangent at $\theta_t$:
#
# $$\theta^* - \hat\theta = -\sum_t\alpha_t\bar H^{-1}[\nabla\ell_t(\theta^*)
# - \nabla\hat\ell_t(\theta^*)],$$
#
# with $\bar H$ the precision of the merged posterior. `bm.mismatch` computes these arrows.

# %%
found = {
    "task arithmetic": bm.mismatch(tasks2, theta2, ones, prior2, solution=joint2),
    "diagonal Hessian": bm.mismatch(tasks2, diag2, ones, prior2, solution=joint2),
    "full Hessian": bm.mismatch(tasks2, q2, ones, prior2, solution=joint2),
}


def gradient(t, at):
    x, targets = tasks2[t].data
    return x.T @ (x @ at - targets)


gm8 = {t: -(gradient(t, joint2) - gradient(t, theta2[t])) / delta for t in rows}

print("GM-8 by hand, arrow of task low:", np.round(gm8["low"], 4))
print(
    "bm.mismatch:                    ", np.round(found["task arithmetic"].contributions["low"], 4)
)
print("\nlength of the arrows" + "".join(f"{t:>10s}" for t in rows) + f"{'their sum':>12s}")
for name, m in found.items():
    lengths = "".join(f"{m.lengths[t]:10.1e}" for t in rows)
    print(f"{name:20s}{lengths}{np.linalg.norm(m.error):12.1e}")


# %%
def ellipse(p, points=200):
    angle = np.linspace(0, 2 * np.pi, points)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    return np.asarray(p.mean())[:, None] + np.linalg.cholesky(p.covariance()) @ circle


def arrow(ax, start, vector, color):
    style = {"arrowstyle": "-|>", "color": color, "lw": 2, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", np.asarray(start) + vector, np.asarray(start), arrowprops=style)


full2 = {t: p.structured("full") for t, p in diag2.items()}
fig, axes = plt.subplots(1, 2, figsize=(8, 4.3), sharex=True, sharey=True)
for ax, (name, m), shown in zip(axes, list(found.items())[:2], (q2, full2), strict=True):
    at = np.asarray(m.merged)
    ax.plot(*at, "s", color="black", mfc="white", ms=6)
    for t in rows:
        ax.plot(*ellipse(shown[t]), color=colors[t], lw=1, ls="-" if shown is q2 else "--")
        ax.plot(*theta2[t], "o", color=colors[t])
        ax.annotate(t, theta2[t], (0, -13), textcoords="offset points", ha="center")
        arrow(ax, at, m.contributions[t], colors[t])
        at = at + m.contributions[t]
    ax.plot(*joint2, "*", color="black", ms=11)
    ax.plot(*average2, "x", color="black", ms=6)
    ax.annotate(name, m.merged, (-8, 6), textcoords="offset points", ha="right")
    ax.annotate("joint", joint2, (9, 2), textcoords="offset points")
    ax.annotate("average", average2, (-8, -4), textcoords="offset points", ha="right")
    ax.set(
        xlabel="intercept, sd", title=f"from {name} to joint", aspect="equal", ylim=(-0.05, 0.95)
    )
_ = axes[0].set_ylabel("slope of body-mass index, sd per sd")

# %% [markdown]
# Head to tail, in the order low, middle, high, the arrows lead from the merge to the star. On
# the left task arithmetic has added three slopes, and its arrows must undo that. The ellipses, one
# standard deviation of each $q_t$, show what it ignores. They are tilted, because within one task a
# steeper line with another intercept fits almost as well, and along their long axes, up and
# inwards, a task gives way most easily. On the right the ellipses of the diagonal posteriors stand
# upright. They say that intercept and slope can be judged separately, and the arrows are what this
# costs. With full posteriors the surrogate's gradient is the true one, GM-9 is an equality, all
# arrows have length zero, and that is why GM-10 is exact.
#
# ## The error without the joint solution
#
# GM-8 needs $\theta^*$, which is what merging wants to avoid computing. But the gradients in it can
# be estimated from the posteriors (GM-9),
# $\nabla\ell_t(\theta) \approx \nabla\ell_t(\theta_t) + H_t(\theta - \theta_t)$. Give `mismatch`
# posteriors in place of the losses, and it predicts the error of task arithmetic, task by task and
# without any data. For a linear model the prediction is the truth. An estimate from diagonal
# posteriors is not: what it takes for the joint solution is the diagonal merge, and its arrows are
# off by about the length of the true ones. All ten features again:

# %%
diag_q = {
    t: bm.DiagonalGaussian.from_mean_precision(theta[t], jnp.diag(q[t].precision.value)) for t in q
}
true = bm.mismatch(tasks, theta, ones, prior, solution=joint)
estimates = {
    "exact": true,
    "from full posteriors": bm.mismatch(q, theta, ones, prior),
    "from diagonal posteriors": bm.mismatch(diag_q, theta, ones, prior),
}
wrong_by = {}
print(f"{'length of the arrows':26s}" + "".join(f"{t:>8s}" for t in rows) + f"{'wrong by':>11s}")
for name, m in estimates.items():
    wrong_by[name] = max(
        np.linalg.norm(m.contributions[t] - true.contributions[t])
        / np.linalg.norm(true.contributions[t])
        for t in rows
    )
    lengths = "".join(f"{m.lengths[t]:8.3f}" for t in rows)
    print(f"{name:26s}{lengths}{wrong_by[name]:11.1e}")

# %% [markdown]
# ## How many digits
#
# Exact means up to rounding, and how far that goes depends on $\kappa$, the condition number of
# $\bar H$. Relative errors of size $\varepsilon$ in $X_t^\top X_t$ can become $\kappa\varepsilon$
# in the solution, for whoever starts from $X_t^\top X_t$, merging or not. Below, a copy of the
# body-mass index with noise of one part in a thousand, and next to no prior, make the problem
# nearly singular. In float32, JAX's default, hardly a digit is left then, and the same happens to
# ridge regression on all rows.

# %%
twin = X[:, 1 + bmi_column] + 1e-3 * np.random.default_rng(2).normal(size=len(y))


def digits(x, delta, dtype):
    """κ, κε, and errors, relative to a QR solution, of the merge and of ridge on all rows."""
    x, targets = x.astype(dtype), y.astype(dtype)
    p0 = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(x.shape[1], dtype), delta)
    factors = [(x[i].T @ targets[i], x[i].T @ x[i]) for i in rows.values()]
    parts = [p0 * bm.FullGaussian.from_natural_parameters(*factor) for factor in factors]
    mode = bm.merge(parts, [1.0] * 3, p0).mode()
    ridge = np.linalg.solve(x.T @ x + dtype(delta) * np.eye(x.shape[1], dtype=dtype), x.T @ targets)

    augmented = np.r_[x.astype(float), np.sqrt(delta) * np.eye(x.shape[1])]
    best = np.linalg.lstsq(augmented, np.r_[targets.astype(float), np.zeros(x.shape[1])])[0]
    kappa = np.linalg.cond(augmented) ** 2
    errors = [np.linalg.norm(v - best) / np.linalg.norm(best) for v in (mode, ridge)]
    return kappa, kappa * np.finfo(dtype).eps, *errors


problems = {"ten features, δ = 25": (X, 25.0), "twin, δ = 10⁻⁶": (np.c_[X, twin], 1e-6)}
reached = {
    f"{name}, {dtype.__name__}": digits(*problem, dtype)
    for name, problem in problems.items()
    for dtype in (np.float64, np.float32)
}
print(f"{'':36s}{'κ':>8s}{'κε':>8s}{'merged':>9s}{'all rows':>10s}")
for case, (kappa, bound, of_merge, of_ridge) in reached.items():
    print(f"{case:36s}{kappa:8.0e}{bound:8.0e}{of_merge:9.0e}{of_ridge:10.0e}")

# %% [markdown]
# ## What we claimed, checked


# %%
def close(x, y, tolerance=1e-12):
    difference = np.max(np.abs(np.asarray(x) - np.asarray(y)))
    assert difference < tolerance, difference


# The merge is the ridge solution on all data, at any weights, whichever way it is computed.
close(merged, joint)
close(merged, by_hand)
close(bm.merge(q, ones, prior).precision.value, precision, 1e-10)
assert largest < 1e-12
assert uneven_error < 1e-12
close(
    bm.merge(q, {**ones, "high": 0.0}, prior).mode(),
    bm.merge([q["low"], q["middle"]], [1, 1], prior).mode(),
)
assert 10 < chosen < 100

# GM-10, written out, and the two forms of the simple average.
H_bar = delta * np.eye(size) + sum(H.values())
gm10 = sum(np.linalg.solve(H_bar, (delta * np.eye(size) + H[t]) @ theta[t]) for t in q)
close(models["full Hessian"], gm10)
close(models["full Hessian"], merged)
close(models["simple average"], sum(theta.values()) / 3)
close(models["task arithmetic"], sum(theta.values()))
close(bm.merge(diag_q, ones, prior).mode(), models["diagonal Hessian"])
gma19 = np.linalg.solve(H_bar, sum(H[t] @ theta[t] for t in q))
close(models["GMA-19 as printed"], gma19)

# What is left out comes back as an error.
assert error["full Hessian"] < 1e-12
assert abs(on_train["full Hessian"]) < 1e-14
assert abs(on_test["full Hessian"]) < 1e-14
assert min(e for name, e in error.items() if name != "full Hessian") > 0.1
assert error["task arithmetic"] > 1
assert error["GMA-19 as printed"] > error["full Hessian, no prior"]
assert error["diagonal Hessian"] > error["full Hessian, no prior"]
assert error["diagonal Hessian"] < error["Fisher average, sums"] < error["simple average"]
best_test = loss(joint, X_test, y_test)
assert best_test + on_test["task arithmetic"] > 0.5 * np.mean(y_test**2)
assert 0.1 < on_test["simple average"] / best_test < 0.15
assert error["Fisher average, sums"] < error["Fisher average, means"]
assert on_test["Fisher average, sums"] > on_test["Fisher average, means"]
close(bm.curvature(tasks["high"], theta["high"], "fisher", "diagonal"), diag_H["high"], 1e-10)
correlation = np.corrcoef(X[:, 1:].T) - np.eye(size - 1)
assert np.abs(correlation[4:, 4:]).max() > 0.8
for h in H.values():
    assert abs(h[0, 1 + bmi_column]) > 0.3 * np.sqrt(h[0, 0] * h[1 + bmi_column, 1 + bmi_column])
three_priors = Ridge(alpha=3 * delta, fit_intercept=False, solver="cholesky").fit(X, y).coef_
close(bm.merge(q, thirds, prior).mode(), three_priors)
assert np.linalg.norm(models["simple average"] - three_priors) > 0.1 * np.linalg.norm(three_priors)

# Two coefficients: flat slopes, combinations that are known best, tilted ellipses.
fit = bm.laplace(tasks2["high"], prior2)
close(fit.mode(), theta2["high"])
assert max(theta2[t][1] for t in rows) < joint2[1]
for t, sign in (("low", 1), ("middle", -1), ("high", -1)):
    height = np.array([1.0, X[rows[t], 1 + bmi_column].mean()])
    height /= np.linalg.norm(height)
    covariance = np.asarray(q2[t].covariance())
    best_known = np.linalg.eigh(covariance)[1][:, 0]
    assert abs(height @ best_known) > 0.99
    assert height @ covariance @ height < min(covariance[0, 0], covariance[1, 1])
    assert sign * covariance[0, 1] > 0

# GM-8 by hand and by `mismatch`; the arrows reach the joint solution; full posteriors need none.
for name, m in found.items():
    close(m.merged + sum(m.contributions.values()), joint2)
    close(m.residual, 0)
    assert (max(m.lengths.values()) < 1e-12) == (name == "full Hessian")
for t in rows:
    close(gm8[t], found["task arithmetic"].contributions[t])

# GM-4: for H_0 = I the error of the simple average.
unit = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 1.0)
q_unit = {t: unit * (q2[t] / prior2) for t in q2}
theta_unit = {t: q_unit[t].mode() for t in q2}
joint_unit = bm.merge(q_unit, thirds, unit).mode()
gm4 = -sum(gradient(t, joint_unit) - gradient(t, theta_unit[t]) for t in rows) / 3
close(joint_unit - sum(theta_unit.values()) / 3, gm4)
close(
    sum(bm.mismatch(tasks2, theta_unit, thirds, unit, solution=joint_unit).contributions.values()),
    gm4,
)

# Estimates without the joint solution.
assert wrong_by["from full posteriors"] < 1e-12
for t in rows:
    arrows = (m.contributions[t] for m in (estimates["from diagonal posteriors"], true))
    assert 0.8 < np.linalg.norm(np.subtract(*arrows)) / true.lengths[t] < 1.2
close(estimates["from full posteriors"].solution, joint)
close(estimates["from diagonal posteriors"].solution, models["diagonal Hessian"])

# Rounding: κε is the scale of the error, and merging loses no more digits than ridge on all rows.
for _, bound, of_merge, of_ridge in reached.values():
    assert of_merge < 10 * bound
    assert of_merge < 10 * of_ridge
assert reached["twin, δ = 10⁻⁶, float32"][2] > 1e-3
print("all checked")
