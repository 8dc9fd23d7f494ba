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
# # Right everywhere, not only at the mode
#
# A merged model lies between the models it is made of, and so far from each of them. What a
# posterior says about its own mode is then of little use. It has to be right *there*, where the
# other tasks pull. *How to Weight Multitask Finetuning? Fast Previews via Bayesian Model-Merging*
# shows this with a toy in two dimensions (FP Fig. 2, appendix B.1): the more flexible the
# posteriors, the better the preview of joint training over all weights.
#
# You will see what a posterior is a surrogate for (FP-7, FP-8), what Laplace's method leaves out
# and what variational online Newton (VON) puts in its place, mixtures of Gaussians, how much of the
# truth each of them has, and FP Fig. 2 redrawn, with a number for every panel. Where a better
# posterior does not give a better preview, you will see that too.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

import bayesmerge as bm
from bayesmerge.fit import elbo

jax.config.update("jax_enable_x64", True)
plt.style.use("bayesmerge.style")
BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"

# %% [markdown]
# ## Three losses
#
# $$\ell_t(\theta) = \log\sum_{i=1}^{10}\exp(a_{it}^\top\theta + b_{it}), \qquad
# \theta\in\mathbb R^2, \quad t = 1, 2, 3,$$
#
# with $a$ and $b$ drawn from normal distributions for the first two tasks and uniformly for the
# third. This is a soft maximum of ten planes, a polygonal bowl with rounded edges. In far
# directions it grows like a cone, where a parabola would grow like a square. So
# $\exp(-\ell_t)$ has a finite integral if some plane rises in every direction, that is, if no two
# neighbouring $a_{it}$ are 180° or more apart.
#
# The loss does not split into examples. It is *one* example, so data have a leading axis of
# length one, and the loss returns shape (1,).


# %%
def loss(theta, batch):
    a, b = batch
    return jax.nn.logsumexp(a @ theta + b, axis=1)


def draw(seed):
    """Three tasks, and the largest angle without an a."""
    rng = np.random.default_rng(seed)
    tasks, empty = {}, []
    for t in ("1", "2", "3"):
        if t == "3":
            a, b = rng.uniform(-2, 2, (10, 2)), rng.uniform(-5, 5, 10)
        else:
            a, b = rng.normal(0, 1.5, (10, 2)), rng.normal(0, 5, 10)
        tasks[t] = bm.Target(loss, (a[None], b[None]))
        angles = np.sort(np.arctan2(a[:, 1], a[:, 0]))
        empty.append(np.degrees(np.diff(angles, append=angles[0] + 2 * np.pi).max()))
    return tasks, max(empty)


tasks, empty_of_ours = draw(2)
origin = jnp.zeros(2)
theta = {t: bm.find_mode(task, start=origin, method="newton").params for t, task in tasks.items()}
print(f"largest angle without an a: {empty_of_ours:.0f}°")
for t in tasks:
    print(f"task {t}: smallest loss {tasks[t].total(theta[t]):5.2f} at {np.round(theta[t], 2)}")

# %% [markdown]
# ## Surrogates
#
# What we would like to preview is joint training at any weights, $\theta_\alpha = \arg\min_\theta
# \sum_t\alpha_t\ell_t(\theta)$ (FP-1). It is the mode of $\prod_tp_t^{\alpha_t}$ with the exact
# posteriors $p_t\propto\exp(-\ell_t)$ (FP-6). We take a flat prior, and weights that sum to one, so
# that $\gamma = 0$. A posterior $q_t$ in place of $p_t$ replaces the loss by the surrogate
# $\hat\ell_t = -\log q_t$ (FP-8), and a good surrogate comes from a good approximation (FP-7),
#
# $$q_t = \arg\min_{q\in\mathcal Q}\ \mathbb E_q[\ell_t] + \mathrm{KL}(q\,\|\,p_0)
# = \arg\min_{q\in\mathcal Q}\ \mathrm{KL}(q\,\|\,p_t).$$
#
# The choice is that of the family $\mathcal Q$, and of how well one minimises:
#
# - *isotropic*: $\mathcal N(\theta_t, I)$, all tasks alike. Merging is averaging,
#   $\sum_t\alpha_t\theta_t$ (FP-2, FP-9).
# - *full, Laplace*: $\mathcal N(\theta_t, H_t^{-1})$ with the Hessian at the mode (FP-10). It does
#   not minimise anything: it knows the loss in one point and to second order only.
# - *full, VON*: the minimiser of FP-7 among Gaussians. At it
#   $\mathbb E_q[\nabla\ell_t] = 0$ and $S = \mathbb E_q[\nabla^2\ell_t]$, the conditions of
#   Laplace's method averaged over $q$. It is Newton's method with these averages.
# - *mixture*: twenty Gaussians, by natural gradients of the same objective (FP-11; `mixture_von`).
#
# With `resample=False` the draws that estimate the averages stay the same from step to step, and
# the fit converges.

# %%
key = jax.random.key(0)
options = {"key": key, "resample": False, "progress": False}


def fit(tasks, num_steps):
    modes = {
        t: bm.find_mode(task, start=origin, method="newton").params for t, task in tasks.items()
    }
    laplace = {t: bm.laplace(task, params=modes[t]) for t, task in tasks.items()}
    von = {
        t: bm.von(task, start=laplace[t], num_samples=1024, num_steps=40, **options)
        for t, task in tasks.items()
    }
    mixture = {
        t: bm.mixture_von(
            task,
            start=von[t],
            num_components=20,
            num_samples=64,
            num_steps=num_steps,
            step_size=0.2,
            weight_step_size=0.05,
            **options,
        )
        for t, task in tasks.items()
    }
    return {
        "isotropic": {t: bm.IsotropicGaussian.from_mean_precision(modes[t], 1.0) for t in tasks},
        "full, Laplace": laplace,
        "full, VON": von,
        "mixture": mixture,
    }


posteriors = fit(tasks, num_steps=300)

# %% [markdown]
# ## Is VON where it should be?
#
# The averages again, without any of the library: formulas for $\nabla\ell$ and $\nabla^2\ell$, and
# Gauss–Hermite quadrature with $60^2$ points in place of random draws. In units of the
# posterior, $L^\top L = S$, the fixed point is
# $\|L^{-\top}\mathbb E_q[\nabla\ell]\| = 0$ and
# $\|L^{-\top}\mathbb E_q[\nabla^2\ell]L^{-1} - I\| = 0$. VON meets it up to the error of its
# own draws, which falls with their number. Laplace is far off.

# %%
nodes, node_weights = np.polynomial.hermite_e.hermegauss(60)
standard = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
standard_weights = np.outer(node_weights, node_weights).ravel() / (2 * np.pi)


def off_fixed_point(task, q):
    a, b = (np.asarray(x[0]) for x in task.data)
    S = np.asarray(q.precision.value)
    root = np.linalg.cholesky(np.linalg.inv(S))
    heights = (np.asarray(q.mean()) + standard @ root.T) @ a.T + b
    share = np.exp(heights - heights.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    slope = share @ a
    gradient = standard_weights @ slope
    second = (standard_weights @ share)[:, None, None] * a[:, :, None] * a[:, None, :]
    hessian = second.sum(0) - (standard_weights * slope.T) @ slope
    return (
        np.linalg.norm(root.T @ gradient),
        np.linalg.norm(root.T @ hessian @ root - np.eye(2)),
    )


def von_with(draws):
    return {
        t: bm.von(task, start=q, num_samples=draws, num_steps=40, **options)
        for (t, task), q in zip(tasks.items(), posteriors["full, Laplace"].values(), strict=True)
    }


candidates = {
    "full, Laplace": posteriors["full, Laplace"],
    **{f"VON, {draws} draws": von_with(draws) for draws in (32, 512, 4096)},
}
off = {
    name: np.sqrt(np.mean([np.square(off_fixed_point(tasks[t], q[t])) for t in tasks], axis=0))
    for name, q in candidates.items()
}
print(f"{'rms of three tasks':22s}{'gradient':>10s}{'Hessian':>10s}")
for name, (gradient, hessian) in off.items():
    print(f"{name:22s}{gradient:10.4f}{hessian:10.4f}")

# %% [markdown]
# ## Against the truth
#
# In two dimensions the exact posterior can be tabulated. Total variation is the largest difference
# in probability that $q$ and $p_t$ give to any set, between 0 and 1. $\mathrm{KL}(q\,\|\,p_t)$ is
# what FP-7 minimises, so VON should have the smallest of all Gaussians, and mixtures, which
# include the Gaussians, can get below. The library's `elbo` estimates the same number from draws,
# $\mathrm{KL}(q\,\|\,p_t) = \log\int e^{-\ell_t}d\theta - \mathrm{ELBO}(q)$.

# %%
side = np.linspace(-30, 30, 401)
grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2))
cell = (side[1] - side[0]) ** 2


@jax.jit
def log_probs(q):
    return jax.vmap(q.log_prob)(grid)


log_truth, log_evidence = {}, {}
for t, task in tasks.items():
    heights = -np.asarray(jax.jit(jax.vmap(task.total))(grid))
    log_evidence[t] = np.log(np.exp(heights).sum() * cell)
    log_truth[t] = heights - log_evidence[t]

variation, divergence, from_elbo, tables = {}, {}, {}, {}
for name, qs in posteriors.items():
    tables[name] = log = {t: np.asarray(log_probs(q)) for t, q in qs.items()}
    variation[name] = np.array(
        [0.5 * cell * np.abs(np.exp(log[t]) - np.exp(log_truth[t])).sum() for t in tasks]
    )
    divergence[name] = np.array(
        [cell * (np.exp(log[t]) * (log[t] - log_truth[t])).sum() for t in tasks]
    )
    from_elbo[name] = np.array(
        [log_evidence[t] - elbo(tasks[t], qs[t], key=key, num_samples=4000) for t in tasks]
    )

print(f"{'':16s}{'total variation':^24s}{'KL(q ‖ p)':^24s}{'KL from elbo':^24s}")
print(f"{'task':16s}" + 3 * "".join(f"{t:>8s}" for t in tasks))
for name in posteriors:
    row = [*variation[name], *divergence[name], *from_elbo[name]]
    print(f"{name:16s}" + "".join(f"{x:8.3f}" for x in row))

# %%
mass = (0.9, 0.5, 0.1)


def levels(log_table):
    """Heights above which `mass` of a density lies."""
    falling = np.sort(log_table)[::-1]
    return falling[np.searchsorted(np.cumsum(np.exp(falling)) * cell, mass)]


def square(table):
    return np.reshape(table, (len(side), len(side)))


fig, axes = plt.subplots(3, 3, figsize=(7.5, 7.2), sharex=True, sharey=True)
for row, t in zip(axes, tasks, strict=True):
    row[0].set_ylabel(f"task {t}: second parameter")
    for ax, name in zip(row, list(posteriors)[1:], strict=True):
        greys = {"colors": ["0.9", "0.78", "0.62"]}
        ax.contourf(side, side, square(log_truth[t]), [*levels(log_truth[t]), 99], **greys)
        lines = levels(tables[name][t])
        ax.contour(side, side, square(tables[name][t]), lines, colors=BLUE, linestyles="solid")
        ax.plot(*theta[t], "+", color=RED, ms=8, mew=1.6)
        ax.set(aspect="equal", xlim=(-10, 7), ylim=(-7.5, 7.5))
        ax.grid(False)
for top, bottom, name in zip(axes[0], axes[-1], list(posteriors)[1:], strict=True):
    top.set_title(name)
    bottom.set_xlabel("first parameter")

# %% [markdown]
# Grey is the truth, lines are the posterior; they enclose 10%, 50% and 90% of its probability. The
# cross is $\theta_t$, the mode.
#
# ## FP Fig. 2
#
# For all 231 weightings on a grid, $\theta_\alpha$ by joint training, and the modes
# $\hat\theta_\alpha$ of the merged posteriors. The product of mixtures is lazy, and its mode is
# found by expectation-maximisation (FP-12).

# %%
alphas = bm.simplex_grid(3, 1 / 20)


@jax.jit
def joint_modes(tasks, alphas):
    def one(alpha):
        return bm.find_mode(bm.JointTarget(tasks, alpha), start=origin, method="newton").params

    return jax.vmap(one)(alphas)


@jax.jit
def merged_modes(posteriors, alphas):
    return jax.vmap(lambda alpha: bm.merge(posteriors, alpha).mode())(alphas)


@jax.jit
def excess_loss(tasks, alphas, merged, joint):
    def one(alpha, merged, joint):
        weighted = bm.JointTarget(tasks, alpha)
        return weighted.total(merged) - weighted.total(joint)

    return jax.vmap(one)(alphas, merged, joint)


joint = joint_modes(tasks, alphas)
merged = {name: merged_modes(q, alphas) for name, q in posteriors.items()}
length = {name: np.linalg.norm(m - joint, axis=1) for name, m in merged.items()}
excess = {name: np.asarray(excess_loss(tasks, alphas, m, joint)) for name, m in merged.items()}

print(f"{'':16s}{'distance to joint':^20s}{'excess loss':^20s}")
print(f"{'':16s}" + 2 * f"{'mean':>10s}{'max':>10s}")
for name in posteriors:
    row = [
        length[name].mean(),
        length[name].max(),
        excess[name].mean(),
        excess[name].max(),
    ]
    print(f"{name:16s}" + "".join(f"{x:10.4f}" for x in row))

# %%
xs, ys = np.linspace(-2.4, 3.6, 121), np.linspace(-2.2, 4, 121)
plane = jnp.asarray(np.stack(np.meshgrid(xs, ys), -1))
surface = jax.jit(jax.vmap(jax.vmap(bm.JointTarget(tasks, [1 / 3] * 3).total)))(plane)
heights = float(surface.min()) + np.array([0.02, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4])

fig, axes = plt.subplots(2, 2, figsize=(7.5, 7.2), sharex=True, sharey=True)
for ax, (name, m) in zip(axes.ravel(), merged.items(), strict=True):
    ax.contour(xs, ys, surface, heights, colors="0.8", linewidths=0.8)
    for missing in range(3):
        edge = alphas[:, missing] == 0
        order = np.argsort(alphas[edge][:, missing - 1])
        ax.plot(*joint[edge][order].T, color="black", lw=1.2)
    shown = {"s": 13, "cmap": "plasma_r", "norm": LogNorm(1e-3, 1), "zorder": 3}
    dots = ax.scatter(*m.T, c=np.clip(excess[name], 1e-3, 1), **shown)
    ax.grid(False)
    ax.set(aspect="equal", title=f"{name}: mean excess {excess[name].mean():.4f}")
    for t, offset in {"1": (-12, 0), "2": (5, 5), "3": (-12, -4)}.items():
        ax.plot(*theta[t], "^", color="black", ms=6, zorder=4)
        ax.annotate(f"$\\theta_{t}$", theta[t], offset, textcoords="offset points", ha="center")
for ax in axes[:, 0]:
    ax.set_ylabel("second parameter")
for ax in axes[1]:
    ax.set_xlabel("first parameter")
_ = fig.colorbar(dots, ax=axes, label="excess loss", extend="min", shrink=0.6)

# %% [markdown]
# Grey contours are the loss of all three tasks at equal weights, triangles are $\theta_1$,
# $\theta_2$, $\theta_3$, the black line is $\theta_\alpha$ along the edges of the grid, where one
# weight is zero. Every dot is a merged model, and its colour is the error of the preview,
# $\sum_t\alpha_t[\ell_t(\hat\theta_\alpha) - \ell_t(\theta_\alpha)]$, what is lost by taking the
# merged model for the jointly trained one.
#
# Joint training does not fill a triangle. It follows the bottoms of the bowls and lies on a
# narrow, bent strip. Averages fill the triangle. Full Gaussians bend, since each task gives way
# where it is flat. Mixtures lie on the strip.
#
# ## Why not Laplace, and when not VON
#
# How far from the modes do we ask? Below is the distance from each $\theta_t$ to $\theta_\alpha$,
# over all weightings. And where is the error made? We split the weightings by the largest weight:
# near a corner, one task counts for almost everything.

# %%
away = {}
for t, q in posteriors["full, Laplace"].items():
    steps = np.asarray(joint - theta[t])
    away[t] = np.sqrt(np.einsum("ai,ij,aj->a", steps, q.precision.value, steps))
print("from a mode to joint solutions, in standard deviations of Laplace's posterior")
for t, distances in away.items():
    print(f"task {t}: mean {distances.mean():.1f}, largest {distances.max():.1f}")

largest = alphas.max(1)
regions = {
    "1 (corners)": largest == 1,
    "0.8 to 0.95": (largest > 0.79) & (largest < 1),
    "below 0.8": largest < 0.79,
}
by_region = {
    name: {region: excess[name][rows].mean() for region, rows in regions.items()}
    for name in posteriors
}
print(f"\n{'mean excess loss, largest weight':34s}" + "".join(f"{r:>13s}" for r in regions))
for name, values in by_region.items():
    print(f"{name:34s}" + "".join(f"{x:13.4f}" for x in values.values()))

# %% [markdown]
# One task is asked about points four and more standard deviations from its mode, where a Taylor
# series has no say. In the corners nothing is merged: with $\alpha = (1, 0, 0)$ the mode of $q_1$
# is asked for. There Laplace is exact by construction, and so is averaging, but VON is not. The
# mode of a Gaussian is its mean, and VON draws it to the *mean* of a skewed posterior, away from
# the cross in the second figure. What VON loses around the corners it more than regains in
# between, where its error is less than half of Laplace's. A mixture need not choose: it has a mean
# and a mode.
#
# So which of the two Gaussians previews better is a matter of the tasks. In this toy it is VON, and
# the seed was chosen to show it. Here are six others, seeds taken in order, without those that
# leave more than 144° free of $a$; the mixtures are fitted more briefly, and the weights lie twice
# as far apart.

# %%
others, few = {}, bm.simplex_grid(3, 1 / 10)
for seed in range(20):
    drawn, empty = draw(seed)
    if seed == 2 or empty > 144 or len(others) == 6:
        continue
    optimum = joint_modes(drawn, few)
    others[seed] = {
        name: float(np.mean(excess_loss(drawn, few, merged_modes(q, few), optimum)))
        for name, q in fit(drawn, num_steps=60).items()
    }
print("mean excess loss" + "".join(f"{name:>16s}" for name in posteriors))
for seed, values in others.items():
    print(f"seed {seed:<11d}" + "".join(f"{x:16.4f}" for x in values.values()))
table = np.array([list(values.values()) for values in others.values()])
print("mean            " + "".join(f"{x:16.4f}" for x in table.mean(0)))

# %% [markdown]
# VON is better than Laplace in four of six, those where Laplace is bad, and worse in the two where
# Laplace is good. Laplace beats averaging in five of six. The mixture is best in all six, and by
# far.
#
# The price: a mixture of twenty Gaussians is twenty times as large, every step of its fit takes
# gradients and Hessians at the draws of every component, and its merged modes are found by
# iteration. But tasks are still fitted one by one, and nothing is trained jointly.
#
# ## What we claimed, checked

# %%
isotropic, laplace, von, mixture = posteriors

# Every step of FP Fig. 2 is a better preview, by every measure.
for measure in (length, excess):
    for summary in (np.mean, np.max):
        values = [summary(measure[name]) for name in posteriors]
        assert (np.diff(values) < 0).all()
assert excess[mixture].mean() < 0.05 * excess[von].mean()
assert excess[mixture].max() < 0.02

# Isotropic is averaging (FP-2); joint training is where the weighted gradient vanishes.
average = alphas @ np.stack([theta[t] for t in tasks])
assert np.abs(merged[isotropic] - average).max() < 1e-12
slopes = jax.vmap(lambda a, x: bm.JointTarget(tasks, a).value_and_gradient(x)[1])(alphas, joint)
assert np.abs(slopes).max() < 1e-9

# FP-10 by hand, and FP-12: one more step of expectation-maximisation changes nothing.
alpha = [0.2, 0.3, 0.5]
H = [posteriors[laplace][t].precision.value for t in tasks]
weighted = [a * h for a, h in zip(alpha, H, strict=True)]
by_hand = np.linalg.solve(
    sum(weighted), sum(w @ theta[t] for w, t in zip(weighted, tasks, strict=True))
)
assert np.abs(bm.merge(posteriors[laplace], alpha).mode() - by_hand).max() < 1e-12
at = np.asarray(bm.merge(posteriors[mixture], alpha).mode())
top, bottom = 0, 0
for a, q in zip(alpha, posteriors[mixture].values(), strict=True):
    means, P = np.asarray(q.means), np.asarray(q.components.precision.value)
    gap = at - means
    log = np.log(q.weights) + 0.5 * np.linalg.slogdet(P)[1]
    log = log - 0.5 * np.einsum("ki,kij,kj->k", gap, P, gap)
    responsibility = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    bottom = bottom + a * np.einsum("k,kij->ij", responsibility, P)
    top = top + a * np.einsum("k,kij,kj->i", responsibility, P, means)
assert np.abs(np.linalg.solve(bottom, top) - at).max() < 1e-9

# VON is at its fixed point up to the error of its draws; Laplace is not.
assert (off["VON, 4096 draws"] < 0.03).all()
assert (off["VON, 4096 draws"] < 0.3 * off["VON, 32 draws"]).all()
assert (off["VON, 32 draws"] < 0.5 * off["full, Laplace"]).all()

# Against the truth, task by task.
assert empty_of_ours < 180
for t in range(3):
    assert (np.diff([divergence[name][t] for name in posteriors]) < 0).all()
    assert variation[mixture][t] < 0.25 * variation[von][t] < 0.25 * variation[laplace][t]
    edge = np.abs(np.asarray(grid)).max(1) > 29.9
    assert np.exp(log_truth[str(t + 1)][edge]).max() < 1e-6
assert all(np.abs(from_elbo[name] - divergence[name]).max() < 0.05 for name in posteriors)

# Laplace is exact in the corners, VON better in between.
for exact in (isotropic, laplace):
    assert by_region[exact]["1 (corners)"] < 1e-12 < 0.01 < by_region[von]["1 (corners)"]
assert by_region[von]["0.8 to 0.95"] > by_region[laplace]["0.8 to 0.95"]
assert by_region[von]["below 0.8"] < 0.5 * by_region[laplace]["below 0.8"]
assert max(distances.max() for distances in away.values()) > 4
for t in tasks:
    centre = cell * np.exp(log_truth[t]) @ np.asarray(grid)
    near = np.linalg.norm(posteriors[von][t].mean() - centre)
    assert near < 0.75 * np.linalg.norm(theta[t] - centre)

# Other toys.
assert len(table) == 6
assert (3 * table[:, 3] < table[:, :3].min(1)).all()
assert ((table[:, 2] < table[:, 1]) == (table[:, 1] > 0.05)).all()
assert (table[:, 2] < table[:, 1]).sum() == 4
assert (table[:, 1] < table[:, 0]).sum() == 5
