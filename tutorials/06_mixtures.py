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
# # Mixtures: when tasks disagree
#
# A Gaussian has one mode, and a product of Gaussians has one mode. So merged Gaussians always find
# a compromise, also where there is none. A posterior that says *either here or there* needs
# several modes, and a mixture of Gaussians has them (FP-11),
#
# $$q_t(\theta) = \sum_k \pi_{tk}\,q_{tk}(\theta).$$
#
# Merging by FP-5 is as before, but the product of sums has no closed form, and its mode is
# found by expectation-maximisation (FP-12, FP-14). You will see what a Gaussian loses, why a
# step of EM never goes downhill, how to find all modes and not only one, what happens to the
# merged model as the weights change, and how to tell that tasks disagree. Everything is in
# one dimension, so that the exact answer can be tabulated.

# %%
import textwrap

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bayesmerge as bm

jax.config.update("jax_enable_x64", True)
plt.style.use("bayesmerge.style")
BLUE, RED, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


@jax.jit
def heights(q, theta):
    return jax.vmap(q.log_density)(theta)


@jax.jit
def losses(task, theta):
    return jax.vmap(task.total)(theta)


class Line:
    """A grid of θ, for densities as tables of their logarithms."""

    def __init__(self, low, high):
        self.theta = np.linspace(low, high, 100 * (high - low) + 1)
        self.step = self.theta[1] - self.theta[0]

    def table(self, q):
        return np.asarray(heights(q, self.theta))

    def loss(self, task):
        return np.asarray(losses(task, self.theta))

    def normalised(self, log):
        return log - log.max() - np.log(np.exp(log - log.max()).sum() * self.step)

    def density(self, q):
        """The logarithm of the density of q, with integral one."""
        return self.normalised(self.table(q))

    def variation(self, log, other):
        """Total variation, between 0 and 1."""
        return 0.5 * self.step * np.abs(np.exp(log) - np.exp(other)).sum()


def peaks(log):
    """Where a table has its local maxima, the highest first."""
    inner = (log[1:-1] > log[:-2]) & (log[1:-1] > log[2:])
    where = np.flatnonzero(inner) + 1
    return where[np.argsort(-log[where])]


# %% [markdown]
# ## Two cameras film one wheel
#
# A wheel turns at $\theta$ revolutions per second; negative is backwards. A camera takes three
# pictures, at times $t_i$ after the wheel was upright, and measures where a mark on the rim is,
# with noise:
#
# $$y_i = (\cos 2\pi\theta t_i,\ \sin 2\pi\theta t_i) + \varepsilon_i, \qquad
# \varepsilon_i\sim\mathcal N(0, 0.7^2 I).$$
#
# At three pictures a second the wheel may have made whole turns in between: $\theta$ and
# $\theta\pm3$ look the same. This is why wheels in films turn backwards. Camera A takes 3 pictures
# per second and camera B takes 4. The truth is $\theta = 5$, and the prior is
# $\mathcal N(2.5, 3^2)$. Each posterior has many modes, and the true one is the highest of
# neither.
#
# A mixture is quickly made: a Gaussian by Laplace's method at each of the eight highest peaks,
# and for weights the probability that it holds, height times width.

# %%
noise, truth = 0.7, 5.0
prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(2.5), 1 / 9)


def loss(theta, batch):
    t, y = batch
    angle = 2 * jnp.pi * theta * t
    seen = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    return 0.5 * jnp.sum((y - seen) ** 2, -1) / noise**2


def film(rate, seed):
    t = np.arange(1, 4) / rate
    angle = 2 * np.pi * truth * t
    errors = noise * np.random.default_rng(seed).normal(size=(3, 2))
    return bm.Target(loss, (t, np.stack([np.cos(angle), np.sin(angle)], -1) + errors))


@jax.jit
def gaussians(task, starts):
    """Laplace's method at the mode near each start, and how much probability it holds."""

    def one(start):
        mode = bm.find_mode(task, prior, start=start, method="newton").params
        q = bm.laplace(task, prior, params=mode, structure="isotropic")
        return q, prior.log_prob(mode) - task.total(mode) - q.log_prob(mode)

    return jax.vmap(one)(starts)


cameras = {"A": film(3, 10), "B": film(4, 22)}
speeds = Line(-12, 17)
log_prior = speeds.density(prior)
exact, highest, mixtures = {}, {}, {}
for name, task in cameras.items():
    exact[name] = speeds.normalised(log_prior - speeds.loss(task))
    found, log_mass = gaussians(task, speeds.theta[peaks(exact[name])[:8]])
    highest[name] = jax.tree.map(lambda x: x[0], found)
    mixtures[name] = bm.Mixture(jax.nn.softmax(log_mass), found)
fit = {name: speeds.density(q) for name, q in mixtures.items()}
for name in cameras:
    far = speeds.variation(fit[name], exact[name])
    top = speeds.theta[peaks(exact[name])[:3]]
    print(f"camera {name}: highest peaks {np.round(top, 2)}, mixture to exact {far:.3f}")

# %%
fig, axes = plt.subplots(2, 1, figsize=(7, 4.2), sharex=True, sharey=True)
for ax, name in zip(axes, cameras, strict=True):
    ax.fill_between(speeds.theta, np.exp(exact[name]), color="0.8", lw=0, label="exact")
    ax.plot(speeds.theta, np.exp(fit[name]), color=BLUE, lw=1.2, label="mixture")
    ax.axvline(truth, color="black", ls=":", lw=1.2)
    ax.set(ylabel="density", title=f"camera {name}", ylim=(0, 2.8))
axes[0].annotate("truth", (truth, 2.45), (5, 0), textcoords="offset points")
axes[0].legend(loc="upper left")
_ = axes[1].set(xlabel="θ, revolutions per second", xlim=(-8, 14))

# %% [markdown]
# ## The product, and what a Gaussian loses
#
# What do both films say? By FP-5 with $\alpha = (1, 1)$ and $\gamma = -1$ it is
# $p_0^{-1}q_Aq_B$. Multiplied out, a product of mixtures of eight Gaussians is a mixture of 64,
#
# $$p_0^{-1}\,q_A\,q_B = \sum_{j,k}\pi_{Aj}\,\pi_{Bk}\;p_0^{-1}q_{Aj}\,q_{Bk},$$
#
# and `expand` does it, for exponents of mixtures that are whole numbers. Two ways to have one
# Gaussian for each camera instead: Laplace's method at the highest mode, and the Gaussian with the
# mean and variance of the mixture (`collapse`).

# %%
ones = {"A": 1.0, "B": 1.0}
both_exact = speeds.normalised(exact["A"] + exact["B"] - log_prior)
product = bm.merge(mixtures, ones, prior)
expanded = product.expand()
merged = {
    "mixtures": expanded,
    "Laplace": bm.merge(highest, ones, prior),
    "collapsed": bm.merge({name: q.collapse() for name, q in mixtures.items()}, ones, prior),
}
tables = {name: speeds.density(p) for name, p in merged.items()}
modes = {name: speeds.theta[np.argmax(log)] for name, log in tables.items()}
variation = {name: speeds.variation(log, both_exact) for name, log in tables.items()}
mass = {
    name: np.exp(log)[np.abs(speeds.theta - truth) < 0.5].sum() * speeds.step
    for name, log in {"exact": both_exact, **tables}.items()
}
print(f"{'':12s}{'mode':>8s}{'sd':>8s}{'to exact':>10s}{'P(4.5 < θ < 5.5)':>20s}")
print(f"{'exact':12s}{speeds.theta[np.argmax(both_exact)]:8.2f}{'':18s}{mass['exact']:20.3f}")
for name, p in merged.items():
    sd = np.sqrt(p.variance())
    print(f"{name:12s}{modes[name]:8.2f}{sd:8.2f}{variation[name]:10.3f}{mass[name]:20.3f}")

# %%
fig, ax = plt.subplots()
ax.fill_between(speeds.theta, np.exp(both_exact), color="0.8", lw=0, label="exact, both films")
shown = {
    "mixtures": (BLUE, "-", "mixtures, merged"),
    "Laplace": (RED, "--", "Laplace, merged"),
    "collapsed": (GREEN, "-.", "collapsed, merged"),
}
for name, (color, ls, label) in shown.items():
    ax.plot(speeds.theta, np.exp(tables[name]), color=color, ls=ls, lw=1.3, label=label)
ax.axvline(truth, color="black", ls=":", lw=1.2)
ax.annotate("truth", (truth, 6.6), (-5, 0), textcoords="offset points", ha="right")
ax.set(xlabel="θ, revolutions per second", ylabel="density", xlim=(-8, 14), ylim=(0, 7))
_ = ax.legend(loc="upper left")

# %% [markdown]
# Camera A alone prefers 2, camera B alone prefers 1, and both together leave only what both
# allow: 5, and with little probability $5 - 12 = -7$. Laplace's Gaussians meet near 1.5, a speed
# that both films exclude, and are sure of it. The collapsed ones have forgotten all
# but the prior. The truth was in the peaks that were not the highest.

# %% [markdown]
# ## Two laboratories
#
# A second example, where components overlap. Two laboratories measure one length, in mm
# from a mark, with instruments that are now and then far off: noise is Student's t with two
# degrees of freedom,
#
# $$\ell_t(\theta) = \tfrac32\sum_i\log(1 + (y_{ti}-\theta)^2/2).$$
#
# Each takes two readings, and the prior is flat. Laboratory A reads −0.4 and 0.3. Laboratory B
# reads $s - 0.8$ and $s + 0.9$: what if $s$ is small, and what if it is large? Moving all readings
# moves the posterior, so the two mixtures are fitted once, by natural gradients (FP-7), with three
# components. A narrow one holds the middle, a wide one the tails.

# %%
readings = {"A": jnp.array([-0.4, 0.3]), "B": jnp.array([-0.8, 0.9])}
lengths = Line(-30, 36)


def student(theta, y):
    return 1.5 * jnp.log1p((y - theta) ** 2 / 2)


scales = [bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), p) for p in (4.0, 0.8, 0.16)]
labs, lab_variation = {}, {}
for name, y in readings.items():
    task = bm.Target(student, y)
    labs[name] = bm.mixture_von(
        task,
        start=bm.Mixture([0.6, 0.3, 0.1], scales),
        key=jax.random.key(0),
        num_samples=64,
        num_steps=200,
        step_size=0.2,
        weight_step_size=0.2,
        structure="isotropic",
        resample=False,
        progress=False,
    )
    log = lengths.normalised(-lengths.loss(task))
    lab_variation[name] = lengths.variation(lengths.density(labs[name]), log)
    q = labs[name]
    print(
        f"laboratory {name}: π {np.round(q.weights, 3)}, precisions "
        f"{np.round(q.components.precision.value, 2)}, mixture to exact {lab_variation[name]:.3f}"
    )


def with_shift(s):
    q = labs["B"]
    moved = jax.vmap(bm.IsotropicGaussian.from_mean_precision)(
        q.means + s, q.components.precision.value
    )
    return {"A": labs["A"], "B": bm.Mixture(q.weights, moved)}


# %% [markdown]
# ## One step of EM
#
# Let $\hat\pi_{tk}(\theta') = \pi_{tk}q_{tk}(\theta')/q_t(\theta')$ be the *responsibilities*
# at $\theta'$. By Jensen's inequality
#
# $$\log q_t(\theta) = \log\sum_k\hat\pi_{tk}\frac{\pi_{tk}q_{tk}(\theta)}{\hat\pi_{tk}}
# \ \ge\ \sum_k\hat\pi_{tk}\log q_{tk}(\theta) + \mathrm{const},$$
#
# with equality at $\theta = \theta'$. The right-hand side is a *minorizer*: it touches from below.
# It is the logarithm of $\prod_kq_{tk}^{\hat\pi_{tk}}$, a member of the family of the components,
# so merging minorizers is adding natural parameters again, and has a mode in closed form. Going
# there is the step of FP-14, for Gaussians FP-12,
#
# $$\theta\leftarrow\Big(\gamma H_0 + \sum_{t,k}\alpha_t\hat\pi_{tk}H_{tk}\Big)^{-1}
# \Big(\gamma H_0\theta_0 + \sum_{t,k}\alpha_t\hat\pi_{tk}H_{tk}\theta_{tk}\Big).$$
#
# The prior is a single Gaussian and its own minorizer, for any $\gamma$, negative ones too. So a
# step cannot go downhill, and FP-12, printed for $\gamma = 0$, has these additional terms.


# %%
def below(p, at, line):
    """The minorizer of p at a point, as a table, and where its mode is."""
    q = p.minorizer(jnp.asarray(at))
    return line.table(q) + p.log_density(at) - q.log_density(at), q.mode()


at_six = bm.merge(with_shift(6.0), [0.5, 0.5])
fig, ax = plt.subplots()
ax.plot(lengths.theta, lengths.table(at_six), color="black", label="log density, s = 6")
for at, color in ((-2.0, BLUE), (2.2, GREEN), (7.2, RED)):
    curve, to = below(at_six, at, lengths)
    start, end = at_six.log_density(at), at_six.log_density(to)
    ax.plot(
        lengths.theta,
        curve,
        color=color,
        lw=1.3,
        ls="--",
        label=f"minorizer at {at:g}".replace("-", "−"),
    )
    ax.plot(at, start, "o", color=color, ms=6)
    ax.plot([to, to], [curve.max(), end], color=color, lw=1)
    ax.plot(to, end, "^", color=color, ms=7)
ax.set(xlabel="θ, mm", ylabel="log density", xlim=(-4, 12), ylim=(-10, -3.5))
_ = ax.legend(loc="upper right")

# %% [markdown]
# This is $q_A^{1/2}q_B^{1/2}$ of the two laboratories with $s = 6$. A step leads from the dot,
# where the curves touch, to the triangle, on the curve above the top of the parabola. Does it ever
# lead down? We try the cameras, from 2,901 speeds each, for several weights and their $\gamma$.

# %%
weightings = [(1.0, 1.0), (0.5, 0.5), (0.3, 0.2), (2.0, 0.7), (1.0, 0.0)]


@jax.jit
def rises(p, points):
    def one(theta):
        return p.log_density(p.minorizer(theta).mode()) - p.log_density(theta)

    return jax.vmap(one)(points)


smallest_rise = {
    alpha: float(rises(bm.merge(mixtures, alpha, prior), speeds.theta).min())
    for alpha in weightings
}
for alpha, rise in smallest_rise.items():
    print(f"α = {alpha}, γ = {1 - sum(alpha):5.2f}: smallest change of the log density {rise:9.2e}")

# %% [markdown]
# What must not be negative is the exponent of a *mixture*. To the power of −1 a lower bound
# becomes an upper bound, and steps could lead anywhere. This is refused:

# %%
try:
    bm.merge(mixtures, {"A": 1.5, "B": -0.5})
    refusal = ""
except ValueError as error:
    refusal = str(error)
print(textwrap.fill(refusal, 94))

# %% [markdown]
# ## All the modes
#
# EM finds *a* mode, and which one depends on the start. So `mode()` starts from many places and
# takes the highest end. What it found is returned by `maxima()`, the highest first:
# where, how high, whether it has converged, the gradient there in posterior standard deviations,
# and the steps needed. Several starts may end in the same mode; `distinct()` keeps one of each.
#
# The starts are by default the means of all components, the highest of the merged means of one
# component of each mixture, and the mode of `blend()`, where each mixture is replaced by
# $\prod_kq_{tk}^{\pi_{tk}}$. The blend alone is a single start, fast and often good enough. Here it
# is not.

# %%
found = product.maxima()
apart = found.distinct()
single = product.maxima("blend")
rows = [*zip(apart.params, apart.log_density, apart.gradient, apart.steps, strict=True)]
rows.append((single.params[0], single.log_density[0], single.gradient[0], single.steps[0]))
print(f"{len(found)} climbs, {int(found.converged.sum())} converged, {len(apart)} modes")
print(f"{'':18s}{'θ':>8s}{'log density':>14s}{'gradient':>12s}{'steps':>8s}")
for i, (theta, height, gradient, steps) in enumerate(rows):
    what = "from the blend" if i == len(apart) else f"mode {i + 1}"
    print(f"{what:18s}{theta:8.2f}{height:14.3f}{gradient:12.1e}{steps:8d}")

# %% [markdown]
# ## Along the weights
#
# Let $\alpha_A$ go from 0 to 1 and $\alpha_B = 1 - \alpha_A$. `merge` takes all weightings at
# once, and `mode()` then returns all merged models. Below they are for $s = 2$ and $s = 5$,
# with joint training $\theta_\alpha$ (FP-1), the lowest point of a table of
# $\sum_t\alpha_t\ell_t$, and with the responsibilities of the components at the merged mode.

# %%
alphas = bm.simplex_grid(2, 1 / 63)


@jax.jit
def responsibilities(q, theta):
    return jax.vmap(q.responsibilities)(theta)


paths, joint, shares, argmax = {}, {}, {}, {}
for s in (2.0, 5.0):
    pair = with_shift(s)
    paths[s] = np.asarray(bm.merge(pair, alphas).mode())
    shares[s] = {name: np.asarray(responsibilities(q, paths[s])) for name, q in pair.items()}
    moved = {"A": readings["A"], "B": readings["B"] + s}
    totals = [lengths.loss(bm.Target(student, y)) for y in moved.values()]
    joint[s] = lengths.theta[np.argmin(alphas @ np.stack(totals), axis=1)]
    logs = [lengths.density(q) for q in pair.values()]
    argmax[s] = lengths.theta[np.argmax(alphas @ np.stack(logs), axis=1)]

# %%
fig, axes = plt.subplots(3, 2, figsize=(7.5, 6.6), sharex=True, sharey="row")
names = ["narrow", "middle", "wide"]
for column, s in zip(axes.T, paths, strict=True):
    jump = np.argmax(np.abs(np.diff(paths[s]))) + 1 if s == 5 else len(alphas)
    for part in (slice(None, jump), slice(jump, None)):
        column[0].plot(alphas[part, 0], joint[s][part], color="0.65", lw=4, label="joint training")
        column[0].plot(alphas[part, 0], paths[s][part], color="black", lw=1.4, label="merged mode")
        for ax, name in zip(column[1:], "AB", strict=True):
            for k, color in enumerate((BLUE, GREEN, RED)):
                line = shares[s][name][part, k]
                ax.plot(alphas[part, 0], line, color=color, ls=("-", "--", "-.")[k], label=names[k])
    column[0].set(title=f"s = {s:g}", ylim=(-0.4, 5.4))
    column[2].set(xlabel="weight of laboratory A")
    if jump < len(alphas):
        for ax in column:
            ax.axvline((alphas[jump, 0] + alphas[jump - 1, 0]) / 2, color="0.5", ls=":", lw=1)
axes[0, 0].set_ylabel("θ, mm")
axes[1, 0].set(ylabel="responsibilities in A", ylim=(-0.03, 1.03))
axes[2, 0].set(ylabel="responsibilities in B", ylim=(-0.03, 1.03))
for ax in (axes[0, 0], axes[1, 0]):
    handles, labels = ax.get_legend_handles_labels()
    count = 2 if ax is axes[0, 0] else 3
    ax.legend(handles[:count], labels[:count])

# %% [markdown]
# With $s = 2$ the components hand over smoothly: the nearer the mode is to one laboratory, the more
# the wider components of the other are responsible, and the mode slides across. With $s = 5$ there
# are two modes. The mode slides until the second is as high, and then it jumps to it, and all
# responsibilities switch. To the left of the jump the merged model agrees with B, and in A only the
# wide component has a say: its readings count as far off. To the right it is the other way round.
#
# Joint training jumps too, a little earlier. So the jump is a property of the tasks, not of EM.
# Merged Gaussians would slide across evenly, for every $s$.
#
# ## One mode or two
#
# So how many modes there are says whether tasks agree. For equal weights and a growing $s$:
# the modes of the merged mixtures, counted by `distinct()`, and the lowest points of joint
# training, counted in a table. Counting needs a search that has converged, and close to the point
# where one mode becomes two, EM is slow. `maxima` therefore extrapolates from the last few steps,
# and takes back what leads downhill; `accelerate=False` is plain EM.

# %%
shifts = np.arange(0, 7.01, 0.5)
halves = {s: bm.merge(with_shift(s), [0.5, 0.5]) for s in shifts}
searches = {"accelerated": [], "plain": []}
joint_count = []
for s in shifts:
    searches["accelerated"].append(halves[s].maxima())
    searches["plain"].append(halves[s].maxima(accelerate=False))
    total = bm.JointTarget(
        [bm.Target(student, readings["A"]), bm.Target(student, readings["B"] + s)], [0.5, 0.5]
    )
    joint_count.append(len(peaks(-lengths.loss(total))))
merged_modes = [found.distinct().params for found in searches["accelerated"]]
slowest = {name: np.array([found.steps.max() for found in runs]) for name, runs in searches.items()}
counted = np.array([len(m) for m in merged_modes])
print("shift s                " + "".join(f"{s:5.1f}" for s in shifts))
print("modes, merged          " + "".join(f"{n:5d}" for n in counted))
print("modes, joint training  " + "".join(f"{n:5d}" for n in joint_count))

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.2))
left.plot(shifts, 0 * shifts, color="0.6", ls=":", lw=1.2)
left.plot(shifts, shifts, color="0.6", ls=":", lw=1.2)
for s, m in zip(shifts, merged_modes, strict=True):
    left.plot(np.full(len(m), s), m, "o", color=BLUE)
    left.plot(s, m[0], "o", color="black")
left.annotate("laboratory A", (0.1, 0), (0, -12), textcoords="offset points", color="0.4")
left.annotate("laboratory B", (4.9, 5.1), (-66, 2), textcoords="offset points", color="0.4")
left.set(xlabel="s, mm", ylabel="θ, mm", title="modes at equal weights", ylim=(-1, 7.2))
right.plot(shifts, slowest["plain"], "s--", color=RED, label="plain EM")
right.plot(shifts, slowest["accelerated"], "o-", color=BLUE, label="accelerated")
right.set(xlabel="s, mm", ylabel="steps", title="slowest climb", ylim=(0, None))
_ = right.legend(loc="upper left")

# %% [markdown]
# Black is the highest mode. Up to some distance the laboratories compromise, beyond it one has to
# choose. At $s = 4$ the merged mixtures have two modes already and joint training has one:
# surrogates are approximations, and this is where it shows.
#
# ## Around each mode, and everywhere
#
# `product.laplace(params)` is the Gaussian at a mode. Its precision is that of the minorizer
# *less* what the components disagree about (Louis's identity),
#
# $$H = \sum_{t,k}\alpha_t\hat\pi_{tk}H_{tk} - \sum_t\alpha_t
# \mathrm{Cov}_{\hat\pi_t}[\nabla\log q_{tk}].$$
#
# For all of the density there is `sample`: exact draws of $q_A^{1/2}q_B^{1/2}$, by
# rejection, although this is not a mixture. Here is $s = 1$, one mode, and $s = 5$, two.

# %%
draws, half_tables, at_modes, complete = {}, {}, {}, {}
for s in (1.0, 5.0):
    p = halves[s]
    half_tables[s] = lengths.density(p)
    draws[s] = np.asarray(p.sample(jax.random.key(1), 2**14))
    at_modes[s] = [p.laplace(theta) for theta in merged_modes[list(shifts).index(s)]]
    complete[s] = [p.minorizer(q.mean()) for q in at_modes[s]]
    for q, peak in zip(at_modes[s], complete[s], strict=True):
        print(
            f"s = {s:g}, mode {q.mean():5.2f}: standard deviation {np.sqrt(q.variance()):.2f}, "
            f"that of the minorizer {np.sqrt(peak.variance()):.2f}"
        )

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.5, 3.2), sharex=True, sharey=True)
for ax, s in zip(axes, draws, strict=True):
    bins = np.arange(-30, 36.1, 0.2)
    shown = {"color": "0.85", "label": "16,384 draws"}
    ax.hist(draws[s], bins, density=True, **shown)
    ax.plot(lengths.theta, np.exp(half_tables[s]), color="black", label="exact")
    for i, q in enumerate(at_modes[s]):
        peak = half_tables[s][np.argmin(np.abs(lengths.theta - q.mean()))]
        curve = np.exp(peak + lengths.table(q) - q.log_density(q.mean()))
        label = None if i else "Laplace, at its mode's height"
        ax.plot(lengths.theta, curve, color=RED, ls="--", lw=1.3, label=label)
    ax.set(xlabel="θ, mm", title=f"s = {s:g}", xlim=(-4, 9), ylim=(0, 0.62))
axes[0].set_ylabel("density")
_ = axes[1].legend(loc="upper right")

# %% [markdown]
# ## Fewer components
#
# Products multiply the number of components. The two cameras have made 64, most of them without
# any weight. `truncate` leaves out the lightest. `reduce` merges, pair by pair, what costs least,
# so that mean and variance stay what they are.

# %%
smaller = {}
for count in (8, 2):
    smaller[count] = {"truncate": expanded.truncate(count), "reduce": expanded.reduce(count)}
lost = {
    count: {
        how: speeds.variation(speeds.density(q), tables["mixtures"]) for how, q in kinds.items()
    }
    for count, kinds in smaller.items()
}
print(f"{'':11s}{'total variation':^22s}{'mean':^22s}{'standard deviation':^22s}")
print(f"{'components':11s}" + 3 * f"{'truncate':>11s}{'reduce':>11s}")
for count, kinds in smaller.items():
    row = [*lost[count].values(), *(float(q.mean()) for q in kinds.values())]
    row += [float(np.sqrt(q.variance())) for q in kinds.values()]
    print(f"{count:<11d}" + "".join(f"{x:11.4f}" for x in row))
print(f"{'all 64':11s}{'':22s}{expanded.mean():11.4f}{'':11s}{np.sqrt(expanded.variance()):11.4f}")

# %% [markdown]
# ## What we claimed, checked

# %%


@jax.jit
def slope(p, theta):
    return jax.grad(p.log_density)(theta)


@jax.jit
def curvature(p, theta):
    return -jax.hessian(p.log_density)(theta)


# The mixtures are close to the posteriors, and their product to that of all data.
for name in cameras:
    assert speeds.variation(fit[name], exact[name]) < 0.03
    assert abs(speeds.theta[np.argmax(exact[name])] - truth) > 2.5
assert max(lab_variation.values()) < 0.02
assert abs(speeds.theta[np.argmax(both_exact)] - truth) < 0.1
assert variation["mixtures"] < 0.02
assert abs(modes["mixtures"] - speeds.theta[np.argmax(both_exact)]) < 0.011
assert abs(float(product.mode()) - modes["mixtures"]) < speeds.step
for name in ("Laplace", "collapsed"):
    assert variation[name] > 0.9
    assert mass[name] < 0.1 < 0.98 < mass["mixtures"]
assert np.sqrt(merged["Laplace"].variance()) < 0.1
assert abs(modes["Laplace"] - truth) > 3
assert np.sqrt(merged["collapsed"].variance()) > 0.95 * np.sqrt(prior.variance())

# Multiplied out: 64 components, and the same function as the product up to a constant.
assert expanded.num_components == 64
log = speeds.table(product)
constant = speeds.table(expanded) - log
assert np.ptp(constant[log > log.max() - 300]) < 1e-8

# Minorizers touch from below, with the same slope, and their modes are not lower.
for p, line, points in (
    (product, speeds, (-6.0, 3.1, 4.45)),
    (at_six, lengths, (-2.0, 2.2, 7.2)),
):
    log = line.table(p)
    for at in points:
        curve, to = below(p, at, line)
        assert (curve <= log + 1e-9 * (1 + np.abs(log))).all()
        nearest = np.argmin(np.abs(line.theta - at))
        assert abs(curve[nearest] - log[nearest]) < 1e-9 * (1 + abs(log[nearest]))
        slopes = [slope(q, at) for q in (p, p.minorizer(at))]
        assert abs(slopes[0] - slopes[1]) < 1e-8 * (1 + abs(slopes[0]))
        assert curve.max() <= p.log_density(to) + 1e-9
assert min(smallest_rise.values()) > -1e-9
assert "Mixture with exponent -0.5" in refusal

# FP-12 with the prior, by hand.
at = 3.4
top, bottom = -1 * (1 / 9) * 2.5, -1 * (1 / 9)
for q in mixtures.values():
    m, H = np.asarray(q.means), np.asarray(q.components.precision.value)
    log = np.log(q.weights) + 0.5 * np.log(H) - 0.5 * H * (at - m) ** 2
    share = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    top, bottom = top + share @ (H * m), bottom + share @ H
assert abs(top / bottom - product.minorizer(jnp.asarray(at)).mode()) < 1e-9

# All modes: they are peaks of the table, the highest is the highest, and the blend misses it.
assert found.converged.all()
assert (np.diff(found.log_density) <= 0).all()
on_table = speeds.theta[peaks(speeds.table(product))]
assert len(apart) > 1
assert all(np.abs(on_table - theta).min() < speeds.step for theta in np.asarray(apart.params))
assert abs(apart.params[0] - on_table[0]) < speeds.step
assert np.abs(np.asarray(apart.log_density) - heights(product, apart.params)).max() < 1e-8
assert single.converged.all()
assert single.log_density[0] < found.log_density[0] - 10
assert single.gradient[0] < 1e-9

# Along the weights: the highest of the table everywhere, smooth for s = 2, one jump for s = 5.
for s in paths:
    assert np.abs(paths[s] - argmax[s]).max() < lengths.step
    for share in shares[s].values():
        assert np.abs(share.sum(1) - 1).max() < 1e-12
    assert (np.diff(paths[s]) < 0).all()
assert np.abs(np.diff(paths[2.0])).max() < 0.1
assert max(np.abs(np.diff(x, axis=0)).max() for x in shares[2.0].values()) < 0.1
jumps = np.flatnonzero(np.abs(np.diff(paths[5.0])) > 1)
assert len(jumps) == 1
for share in shares[5.0].values():
    change = np.abs(np.diff(share, axis=0)).max(1)
    assert change[jumps[0]] > 0.7
    assert np.delete(change, jumps).max() < 0.1
near, far = shares[5.0]["A"], shares[5.0]["B"]
assert near[: jumps[0] + 1, 2].min() > 0.95
assert near[jumps[0] + 1 :, 2].max() < 0.05
assert far[: jumps[0] + 1, 2].max() < 0.05
assert far[jumps[0] + 1 :, 2].min() > 0.8
joint_jump = np.flatnonzero(np.abs(np.diff(joint[5.0])) > 1)
assert len(joint_jump) == 1
assert 0 <= jumps[0] - joint_jump[0] <= 3
assert np.abs(np.diff(joint[2.0])).max() < 0.1
assert np.abs(paths[2.0] - joint[2.0]).max() < 0.1

# On either side of the jump the two modes have changed rank.
ranks = []
for row in (jumps[0], jumps[0] + 1):
    two = bm.merge(with_shift(5.0), alphas[row]).maxima().distinct()
    assert len(two) == 2
    assert abs(two.params[0] - paths[5.0][row]) < 1e-6
    ranks.append(two.params[0] < two.params[1])
assert ranks[0] != ranks[1]

# One mode or two, as in a table of the same product, and steps.
assert (np.diff(counted) >= 0).all()
assert (counted[0], counted[-1]) == (1, 2)
assert (np.diff(joint_count) >= 0).all()
assert (joint_count[0], joint_count[-1]) == (1, 2)
assert np.abs(counted - joint_count).sum() <= 1
for s, m in zip(shifts, merged_modes, strict=True):
    log = lengths.table(halves[s])
    assert np.abs(np.sort(lengths.theta[peaks(log)]) - np.sort(m)).max() < lengths.step
for quick, slow in zip(*searches.values(), strict=True):
    assert quick.converged.all()
    assert slow.converged.all()
    assert quick.steps.sum() <= slow.steps.sum()
    assert abs(quick.log_density[0] - slow.log_density[0]) < 1e-9
assert slowest["plain"].max() > 1.5 * slowest["accelerated"].max()

# Laplace: the curvature by automatic differentiation, wider than the minorizer.
for s, qs in at_modes.items():
    assert len(qs) == (1 if s == 1 else 2)
    for q, peak in zip(qs, complete[s], strict=True):
        assert abs(q.variance() * curvature(halves[s], q.mean()) - 1) < 1e-8
        assert q.variance() > peak.variance()

# Draws are exact: the largest distance of distribution functions is that of chance.
for s, x in draws.items():
    cumulative = np.cumsum(np.exp(half_tables[s])) * lengths.step
    at_draws = np.interp(np.sort(x), lengths.theta + lengths.step / 2, cumulative)
    ranks = np.arange(1, len(x) + 1) / len(x)
    assert np.abs(at_draws - ranks).max() < 1.63 / np.sqrt(len(x))

# Fewer components.
for count, kinds in smaller.items():
    assert all(q.num_components == count for q in kinds.values())
    assert abs(kinds["reduce"].mean() - expanded.mean()) < 1e-9
    assert abs(kinds["reduce"].variance() / expanded.variance() - 1) < 1e-9
assert max(lost[8].values()) < 1e-3
assert max(lost[2].values()) < 0.02
print("all checked")
