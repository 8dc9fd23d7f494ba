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
# # Choosing weights
#
# You train one model on several tasks, with the loss $\sum_t\alpha_t\ell_t(\theta)$, and must
# choose the weights $\alpha_t$. Each choice costs a training run, so few are tried. A *preview*
# (FP §3) trains once per task, multiplies the posteriors for as many weightings as you like,
#
# $$\hat\theta_\alpha = \arg\max_\theta\; p_0(\theta)^\gamma\prod_t q_t(\theta)^{\alpha_t},
# \qquad \gamma = 1 - \sum_t\alpha_t,$$
#
# and measures the merged models. This tutorial is about using one: what to ask of it, how far to
# trust it, and what to do where you cannot. The problem is small enough to train on every
# weighting too, so that each answer can be checked.

# %%
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score

import bayesmerge as bm
from bayesmerge.previews import Compute, Refinement, Spread, Uncompiled

plt.style.use("bayesmerge.style")
BLUE, RED, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"

# %% [markdown]
# ## Three tasks
#
# Handwritten digits, 8×8 pixels, of which we keep the first twenty principal components. Each task
# has 250 images of some of the digits, but the model, a softmax regression, must tell all ten
# apart. On its own a task says nothing about the others' digits: this is a hard case for merging.
# (For a model linear in its parameters the generalised Gauss-Newton matrix is the Hessian.)

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
centred = (images - images.mean(0)) / 16
components = np.linalg.svd(centred, full_matrices=False)[2][:20]
x = jnp.asarray(np.column_stack([centred @ components.T, np.ones(len(labels))])[order], float)
y = jnp.asarray(labels[order])
test, train = slice(0, 500), slice(500, None)


def logits(theta, x):
    return x @ theta


def tasks_of(digits):
    """For each task 250 training images, and which of the test images are its own."""
    targets, own = {}, {}
    for name, classes in digits.items():
        rows = np.flatnonzero(np.isin(y[train], classes))[:250]
        data = (x[train][rows], y[train][rows])
        targets[name] = bm.Target.supervised(logits, "categorical", data)
        own[name] = np.isin(y[test], classes)
    return targets, own


def accuracy_by_task(own):
    def accuracy(theta):
        right = jnp.argmax(logits(theta, x[test]), axis=1) == y[test]
        return {name: jnp.mean(right, where=rows) for name, rows in own.items()}

    return accuracy


digits = {"0–3": (0, 1, 2, 3), "4–6": (4, 5, 6), "7–9": (7, 8, 9)}
targets, own = tasks_of(digits)
accuracy = accuracy_by_task(own)
prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros((21, 10)), 1.0)
q = {
    structure: {
        t: bm.laplace(loss, prior, structure=structure, curvature="ggn")
        for t, loss in targets.items()
    }
    for structure in ("isotropic", "diagonal", "full")
}
alpha = bm.simplex_grid(3, 0.1)
seen = {s: bm.preview(qs, alpha, accuracy, prior, progress=False) for s, qs in q.items()}
print(seen["full"])

# %% [markdown]
# The metric is any function of the parameters. Ours returns an accuracy for every task, by name, so
# that one preview answers several questions. What is best is for you to say:

# %%
full = seen["full"]
size = {name: int(rows.sum()) for name, rows in own.items()}
asked = {
    "mean of tasks": full.best(),
    "worst task": full.best("worst"),
    "10 × digits 0–3": full.best({"0–3": 10.0, "4–6": 1.0, "7–9": 1.0}),
    "mean, ≥ 93 % on 0–3": full.best(at_least={"0–3": 0.93}),
}


def row_of(best, preview):
    weights = " / ".join(f"{w:.1f}" for w in best.weights.values())
    values = "".join(f"{preview.metrics[t][best.row]:8.3f}" for t in digits)
    return f"{weights:>17s}{values}"


print(f"{'':22s}{'best weights':>17s}" + "".join(f"{t:>8s}" for t in digits))
for question, best in asked.items():
    print(f"{question:22s}{row_of(best, full)}")

# %% [markdown]
# The merged model that is best on average is also best on its worst task. To care about digits 0–3
# one can give them more weight in the mean, or set a bound; both move $\alpha$ towards them,
# and digits 7–9 pay. A bound is easier to explain than a weight. But accuracies here are from about
# 150 images of each task, so a difference below two percent is not to be taken seriously.
#
# ## How far to trust it
#
# Joint training on all 66 weightings is what the preview predicts. You would not do this; we do,
# to have the truth. (Where training is expensive, train on five weightings and compare those.)

# %%
joint = bm.joint_training(
    targets, alpha, accuracy, prior, compute=Compute(weightings_at_once=66), progress=False
)
compared = {s: preview.compare(joint) for s, preview in seen.items()}
print(f"{'':26s}" + "".join(f"{s:>12s}" for s in seen))
for field, what in {
    "mse": "mean squared error",
    "rank_correlation": "rank correlation",
    "top_overlap": "top tenth in common",
    "regret": "regret",
    "front_share": "share of the front",
}.items():
    values = [getattr(c, field) for c in compared.values()]
    print(f"{what:26s}" + "".join(f"{value:12.4f}" for value in values))
print("\nthe questions above, in joint training with the weights that the full preview answers")
for question, best in asked.items():
    print(f"{question:22s}{row_of(best, joint)}")

# %%
every = {**seen, "joint training": joint}
fig, axes = plt.subplots(1, 4, figsize=(10.5, 3.0))
_ = bm.plots.ternaries(every, axes=axes, reference="joint training", label="mean accuracy")

# %%
_ = bm.plots.histogram(every, reference="joint training", bins=15, label="mean accuracy")

# %% [markdown]
# A richer posterior gives a better preview: the squared error falls to a third from isotropic to
# full, and weightings are ranked better. Yet all three cost little regret, less than one percent.
# Joint training is good on a wide plateau, and each preview has its best point on it. (A regret
# below the noise of the test set does not tell posteriors apart.)
#
# What previews get wrong is the extent of the plateau. Where a task has little weight the merged
# model forgets its digits and the jointly trained one does not. So believe a preview's
# good regions, and the direction in which weights should move; do not believe it that a weighting
# is bad, and do not read the accuracies themselves as forecasts: full previews are too low nearly
# everywhere.
#
# ## A curvature made for merging
#
# Why are full previews too low? A full posterior knows its task's loss near $\theta_t$, and merged
# models lie elsewhere, between the tasks. There a task's own classes are no longer certain, and the
# loss curves in directions in which it is flat at $\theta_t$. Which curvature would be right? For
# any $H_t$ the merged and the jointly trained model differ by (GM-8)
#
# $$\bar H(\theta^* - \hat\theta) = -\sum_t\alpha_t\big[\nabla\ell_t(\theta^*) -
# \nabla\ell_t(\theta_t) - H_t(\theta^* - \theta_t)\big],$$
#
# and the bracket is zero, the merge exact, for the curvature averaged over the way there,
#
# $$H_t = \int_0^1\nabla^2\ell_t\big(\theta_t + s(\theta^* - \theta_t)\big)\,ds.$$
#
# We do not know $\theta^*$, and it differs from weighting to weighting. But all tasks know the mode
# $\theta_0$ of their prior, which also lies between them. `towards` averages over the way to any
# point, at the price of three curvatures.

# %%
theta_0 = prior.mode()
on_the_way = {t: bm.laplace(loss, prior, towards=theta_0) for t, loss in targets.items()}
better = bm.preview(on_the_way, alpha, accuracy, prior, progress=False)
against = better.compare(joint)
for name, preview in {"full": full, "full, towards θ_0": better, "joint training": joint}.items():
    best = preview.best()
    print(f"{name:18s} MSE {preview.compare(joint).mse:.4f}, best {best.value:.3f}", end=" ")
    print(f"(joint training there {joint.values()[best.row]:.3f})")

equal = dict.fromkeys(targets, 1 / 3)
theta_star = bm.find_mode(bm.JointTarget(targets, equal), prior, method="newton").params
exact = {t: bm.laplace(loss, prior, towards=theta_star) for t, loss in targets.items()}


def distance(posteriors):
    away = bm.merge(posteriors, equal, prior).mode() - theta_star
    return float(jnp.linalg.norm(away) / jnp.linalg.norm(theta_star))


print("\nat equal weights, distance from joint training in parameters:")
print(f"full {distance(q['full']):.3f}, towards θ_0 {distance(on_the_way):.3f}, ", end="")
print(f"towards θ* {distance(exact):.4f}")

# %%
shown = {"full": full, "full, towards $\\theta_0$": better, "joint training": joint}
fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.0))
_ = bm.plots.ternaries(shown, axes=axes, reference="joint training", label="mean accuracy")

# %% [markdown]
# The squared error is eighteen times smaller, without a gradient at any weighting, and the accuracy
# at the best weights is now a forecast: joint training with these weights is within half a percent
# of it. In parameters the merged model is
# not much nearer; what has become right is its decisions. Towards the true $\theta^*$ the merge is
# exact but for the error of three nodes, as GM-8 says: a way to check it, not to use it.
#
# We go on with the three posteriors at their modes, to see what can be done where they are given.
#
# ## What must be given up for what
#
# A mean hides which task pays. The Pareto front has every weighting at which no task can be better
# without another being worse; the hypervolume is the volume below it (here from zero accuracy up),
# one number for how much a set of models can do.

# %%
zero = dict.fromkeys(digits, 0.0)
front = {s: preview.front(beyond=zero) for s, preview in every.items()}
for s, f in front.items():
    print(f"{s:16s}{len(f.rows):3d} weightings on the front, hypervolume {f.hypervolume:.3f}")
attained = {}
for s, f in front.items():
    trusted = bm.Preview({t: joint.metrics[t][f.rows] for t in digits}, f.weights, joint.tasks)
    attained[s] = trusted.front(beyond=zero).hypervolume
print("joint training, only on the weightings of each front:")
print({s: round(v, 3) for s, v in attained.items()})

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6))
for ax, pair in zip(axes, (("0–3", "4–6"), ("4–6", "7–9")), strict=True):
    bm.plots.fronts(every, pair, ax=ax, reference="joint training")
    ax.set(xlabel=f"accuracy on {pair[0]}", ylabel=f"accuracy on {pair[1]}")
    ax.set(xlim=(0.35, 1.02), ylim=(0.35, 1.02))
    ax.get_legend().remove()
_ = fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)

# %% [markdown]
# No merged front attains that of joint training, and the full one comes nearest. To choose by a
# preview's front, one would train on the weightings on it. What joint training attains on the 37 of
# the full preview is 98 % of what it attains on all 66.
#
# ## Refined previews
#
# Between a preview and training on every weighting there is a middle: a few gradient steps of joint
# training from each merged model. Two things make few steps enough.
#
# **Coordinates.** The merged posterior $\mathcal N(\hat\theta, \Lambda^{-1})$ knows which
# directions are steep. In $\theta = \hat\theta + \Lambda^{-1/2}u$ it is a standard normal
# distribution, and if it were right the joint objective would be $\frac12\|u\|^2$, which one
# gradient step of length one minimises. L-BFGS in $u$ corrects what is not right.
#
# **Length.** It is least right about length: where a task alone says nothing about a direction,
# its posterior is flat there, and a whole step goes far too far. For models linear in
# their parameters the outputs along a ray are linear in its length,
# $f(\theta + td) = f + t\,\partial f\,d$, so one pass forward gives the slope of the loss for every
# $t$, and the search costs no further gradients. Other models are linearised there.
#
# So a step costs one gradient of every task, which is one pass forward and back through all data,
# and one pass forward. A `Refinement` bounds their number by `steps`, and `until` stops early, at
# weightings where the gradient in these coordinates, per parameter, is below it. We start from the
# three posteriors and, to see what a merge is worth, from the prior, without any.

# %%
starts = {"prior": dict.fromkeys(targets, prior), **q}
counts = (0, 1, 2, 4, 8)
refined, error, stopped = {}, {}, {}
for s, qs in starts.items():

    def run(steps, qs=qs, **until):
        refine = Refinement(targets, steps, **until) if steps else None
        return bm.preview(qs, alpha, accuracy, prior, refine=refine, progress=False)

    refined[s] = {k: run(k) for k in counts}
    error[s] = np.array([r.compare(joint).mse for r in refined[s].values()])
    stopped[s] = run(8, until=1.0)
print("mean squared error to joint training, after this many gradients at each weighting")
print(f"{'':12s}" + "".join(f"{k:>10d}" for k in counts) + f"{'until=1.0':>14s}")
for s in starts:
    numbers = "".join(f"{e:10.5f}" for e in error[s])
    mean = stopped[s].details["gradients"].mean()
    print(f"{s:12s}{numbers}{stopped[s].compare(joint).mse:14.5f}, {mean:.1f} gradients")

# %%
fig, ax = plt.subplots(figsize=(6.4, 3.4))
for s, color, mark in zip(starts, (BLACK, RED, GREEN, BLUE), "xsDo", strict=True):
    label = "the prior, no merge" if s == "prior" else s
    ax.plot(counts, error[s], color=color, marker=mark, markersize=5, label=label)
ax.set(yscale="log", xlabel="gradients of every task, at each weighting")
ax.set(ylabel="mean squared error of accuracy", xticks=counts)
_ = ax.legend(title="start")

# %% [markdown]
# One gradient from the full posterior brings the squared error down by a factor of a hundred, to
# accuracies within two percent, root mean square. From the diagonal it takes two, from the
# isotropic and from the prior between two and four. So a richer posterior saves gradients, and here
# that is what it is worth: a merge has no advantage left where four or more gradients can be paid
# for at each weighting. (This is a convex problem. In a network joint training from the prior may
# end elsewhere.) With `until` the gradients go where they are needed; neither it nor `steps`
# compiles anything again when changed.
#
# ### A certificate?
#
# The first gradient says how far a merged model is from being jointly trained: its length in
# posterior standard deviations, root mean square over parameters, is the `mismatch`. It is zero
# if and only if the model is the joint one. Does it also say at which weightings the preview's
# accuracy is wrong?

# %%
corner = alpha.max(1) == 1
mismatch = {s: refined[s][1].details["mismatch"] for s in q}
off = {s: np.abs(seen[s].values() - joint.values()) for s in q}
certainty = {s: spearmanr(mismatch[s], off[s]).statistic for s in q}
for s in q:
    print(
        f"{s:10s} rank correlation of mismatch and error {certainty[s]:5.2f}; mismatch at corners "
        f"{mismatch[s][corner].max():.0e}, elsewhere {mismatch[s][~corner].min():.1f} to "
        f"{mismatch[s][~corner].max():.1f}"
    )

# %% [markdown]
# For the full posterior it does, roughly: weightings with a larger mismatch have a larger error.
# For the diagonal it says little, and for the isotropic nothing, since the mismatch is measured in
# the standard deviations of the posterior whose merge is in doubt, and if these are wrong, so is
# the measure. All are zero at the corners, where nothing is merged. It is a certificate of being at
# the joint mode, and compares weightings of one preview; it is no bound on an accuracy, and a
# small one from a poor posterior is no comfort.
#
# ## Where the picture is unsure
#
# A posterior is more than its mode. With a `Spread` the metric is also taken over draws of each
# merged posterior, the same noise for all weightings, and its standard deviation is kept.

# %%
drawn = bm.preview(
    q["full"],
    alpha,
    accuracy,
    prior,
    spread=Spread(16, jax.random.key(0)),
    progress=False,
)
inside = (alpha > 0).all(1)
spread = drawn.values("spread")
of_spread = spearmanr(spread, off["full"]).statistic
print(f"spread {spread.min():.3f} to {spread.max():.3f}, at the best {spread[full.best().row]:.3f}")
print(f"rank correlation of spread and error {of_spread:.2f}")

# %%
shown = {"standard deviation over draws": spread, "distance from joint training": off["full"]}
fig, axes = plt.subplots(1, 2, figsize=(8.0, 3.1))
with plt.rc_context({"axes.grid": False}):
    for ax, (title, values) in zip(axes, shown.items(), strict=True):
        bm.Preview({title: values}, alpha, full.tasks, higher_is_better=False).plot(ax=ax)

# %% [markdown]
# The spread is about data: by how much accuracy varies over models that the merged posterior does
# not tell apart. At the best weighting it is six percent, so that differences of one
# percent around it mean nothing. It is not about merging: the errors are largest close to the
# corners, where the spread is not, and the two pictures have little in common. Refine where you
# doubt the merge; get more data where the spread is too large. (Each star is at the least value.)
#
# ## In practice
#
# **Interruptions, and metrics that are not JAX.** With `save` a preview is kept in a file while it
# runs, and the same call goes on from there. A metric of NumPy or scikit-learn is wrapped as
# `Uncompiled`, and an `executor`, such as a pool of threads, measures several models at once.

# %%
calls = 0


def macro_f1(theta):
    global calls
    calls += 1
    if calls == 40:
        raise RuntimeError("the power has failed")
    return f1_score(y[test], np.argmax(x[test] @ theta, axis=1), average="macro", zero_division=0)


with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
    metric = Uncompiled(macro_f1)
    options = {"save": Path(folder, "f1.nc"), "progress": False}
    try:
        bm.preview(q["full"], alpha, metric, prior, **options)
    except RuntimeError as failure:
        print(f"after {calls} calls: {failure}")
    f1 = bm.preview(q["full"], alpha, metric, prior, compute=Compute(pool), **options)
    print(f"{calls - 40} more calls for {len(alpha) - 39} weightings; best {f1.best().weights}")
    surfaces = {**seen, "joint training": joint}
    page = bm.plots.explore(surfaces, Path(folder, "page.html"), reference="joint training")
    page_size = page.stat().st_size
    bm.checkpoints.save(Path(folder, "digits.safetensors"), q["full"], prior)
    saved = bm.checkpoints.load(Path(folder, "digits.safetensors"))

# %% [markdown]
# Any `concurrent.futures.Executor` will do. With Dask, on machines of a cluster:
#
# ```python
# from dask.distributed import Client
#
# with Client("scheduler:8786").get_executor() as cluster:
#     seen = bm.preview(q, alpha, metric, prior, compute=Compute(cluster), save="preview.nc")
# ```
#
# **Looking at it.** `bm.plots.explore` writes one HTML page, which needs no network, with all
# surfaces side by side; the weighting pointed at in one is marked in all.
#
# Here is that of `make demo`:

# %%
fig, ax = plt.subplots(figsize=(10, 7.85))
ax.imshow(plt.imread("../docs/images/explorer.png"))
_ = ax.set_axis_off()

# %% [markdown]
# **From a shell.** Posteriors saved with `bm.checkpoints.save` can be previewed without writing a
# script. The metric is a function in a file of yours, here `mymetric.py`:
#
# ```console
# $ bayesmerge preview digits.safetensors mymetric:accuracy --spacing 0.05 \
#       --output preview.nc --output preview.png --output preview.html
# ```
#
# ## More than three tasks
#
# Five tasks of two digits each. A simplex of five weights cannot be drawn, but each weighting can
# be a line across one axis for every task (`parallel_coordinates`), and for every two tasks one can
# show the best that any weights of the others allow (`slices`).

# %%
pairs = {f"{d}, {d + 1}": (d, d + 1) for d in range(0, 10, 2)}
five, five_own = tasks_of(pairs)
q5 = {name: bm.laplace(loss, prior, curvature="ggn") for name, loss in five.items()}
alpha5 = bm.simplex_grid(5, 0.2)
seen5 = bm.preview(q5, alpha5, accuracy_by_task(five_own), prior, progress=False)
best5 = seen5.best()
print(len(alpha5), "weightings; best", best5.weights, f"with {best5.value:.3f}")
print("of single tasks", np.round(seen5.values()[alpha5.max(1) == 1].max(), 3))

# %%
fig, ax = plt.subplots(figsize=(7.4, 3.4))
with plt.rc_context({"axes.grid": False}):
    _ = bm.plots.parallel_coordinates(seen5, ax=ax, label="mean accuracy")

# %%
with plt.rc_context({"axes.grid": False}):
    axes = bm.plots.slices(seen5, label="mean accuracy")

# %% [markdown]
# Equal weights are best, and far better than any other, since on this grid every other weighting
# leaves some task without weight: the thick lines below the best all cross zero somewhere. That is
# the trouble with grids in many dimensions, not a property of the tasks. With a preview of all
# that is cheap one looks around, and then gives `preview` weightings of one's own around what was
# found: any array of shape (A, T) will do.
#
# ## What we claimed, checked

# %%
mse = [compared[structure].mse for structure in ("isotropic", "diagonal", "full")]
rank = [compared[structure].rank_correlation for structure in ("isotropic", "diagonal", "full")]

# Questions: one answer to two of them, and another when digits 0–3 count more.
assert asked["mean of tasks"].row == asked["worst task"].row
bounded = asked["mean, ≥ 93 % on 0–3"]
assert full.metrics["0–3"][full.best().row] < 0.93 <= full.metrics["0–3"][bounded.row]
assert bounded.weights["0–3"] > full.best().weights["0–3"]
assert full.metrics["7–9"][bounded.row] < full.metrics["7–9"][full.best().row] - 0.1
assert joint.metrics["0–3"][bounded.row] > joint.metrics["0–3"][full.best().row]

# Trust: better with richer posteriors, little regret, and too low a picture of the plateau.
assert mse[0] > 1.3 * mse[1] > 1.3 * 1.3 * mse[2]
assert mse[2] < 0.4 * mse[0]
assert rank[0] < rank[1] < rank[2]
assert all(0 <= c.regret < 0.015 for c in compared.values())
good = joint.values() > joint.best().value - 0.1
assert good.sum() > 2 * (full.values() > joint.best().value - 0.1).sum()
assert np.mean(full.values() <= joint.values() + 0.02) > 0.9

# Curvature on the way: a forecast, and exact towards the truth.
assert against.mse < 0.1 * mse[2]
assert against.rank_correlation > 0.95 > 0.85 > rank[2]
assert abs(better.best().value - joint.values()[better.best().row]) < 0.005
assert 0 <= against.regret < 0.01
assert distance(exact) < 0.01 < 0.5 * distance(q["full"]) < distance(on_the_way)

# Fronts.
assert all(
    f.hypervolume < front["joint training"].hypervolume
    for f in front.values()
    if f is not front["joint training"]
)
assert front["isotropic"].hypervolume < front["diagonal"].hypervolume < front["full"].hypervolume
assert attained["full"] > 0.97 * attained["joint training"]

# Refinement: from every start it converges, and richer posteriors need fewer gradients.
for s in starts:
    assert (np.diff(error[s]) < 1e-6).all()
    assert error[s][-1] < 1e-4
    assert (stopped[s].details["gradients"] <= 8).all()
for k in (0, 1, 2):
    by_start = [error[s][k] for s in ("prior", "isotropic", "diagonal", "full")]
    assert (np.diff(by_start) < 0).all()
assert error["full"][1] < 0.03 * error["full"][0]
assert error["diagonal"][2] < 2 * error["full"][1] < error["isotropic"][2] < error["prior"][2]
assert error["prior"][3] < error["full"][1]
mean_spent = [stopped[s].details["gradients"].mean() for s in starts]
assert (np.diff(mean_spent) < 0).all()

# The mismatch is zero at corners, and informative for the full posterior only.
for s in q:
    assert mismatch[s][corner].max() < 0.01 < 0.3 < mismatch[s][~corner].min()
assert certainty["full"] > 0.6
assert certainty["isotropic"] < certainty["diagonal"] < 0.5

# Spread is not the error of the merge.
assert 0.03 < spread[full.best().row] < 0.09
assert of_spread < 0.6
assert not corner[np.argmax(off["full"])]
assert alpha[np.argmax(off["full"])].max() >= 0.7
assert spread[np.argmax(off["full"])] < 0.9 * spread.max()

# In practice: what had been measured was not measured again, and files hold what was put in.
assert calls == 40 + len(alpha) - 39
assert f1.best().row == full.best().row
assert page_size > 1e6
for task, posterior in q["full"].items():
    assert jnp.array_equal(saved.posteriors[task].mode(), posterior.mode())

# Five tasks: weights that leave no task out.
assert set(best5.weights.values()) == {0.2}
assert np.sort(seen5.values())[-2] < best5.value - 0.08
print("all checked")
