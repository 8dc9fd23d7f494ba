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
# # One equation
#
# Two people learn about the same unknown $\theta$ from different data, and hand us what they
# learned: their posteriors $q_1$ and $q_2$, but not the data. What would one person with all the
# data believe? The whole library is one answer (FP-5):
#
# $$p_\alpha(\theta) \propto p_0(\theta)^{\gamma} \prod_t q_t(\theta)^{\alpha_t},
# \qquad \gamma = 1 - \sum_t \alpha_t .$$
#
# Here $p_0$ is the prior that everyone started from and $\alpha_t$ says how much the data of task
# $t$ shall count. At the end you will know why this is right, why the exponent $\gamma$ is there,
# how the product turns into a sum of vectors, what weights other than 0 and 1 mean, how data are
# taken away again, and what the mode of the result depends on. Nothing larger than a coin is
# needed. Equations FP-n are those of *How to Weight Multitask Finetuning? Fast Previews via
# Bayesian Model-Merging*; three misprints in its appendix are corrected on the way.

# %%
import textwrap

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
from scipy.special import logit

import bayesmerge as bm

jax.config.update("jax_enable_x64", True)
plt.style.use("bayesmerge.style")
BLUE, RED, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


@jax.jit
def density(q, points):
    return jnp.exp(jax.vmap(q.log_prob)(points))


# %% [markdown]
# ## Two people flip one coin
#
# A coin shows heads with probability $\pi$. Seen $s$ heads and $f$ tails, the likelihood is
# $\pi^s(1-\pi)^f$. A Beta density $\pi^{a-1}(1-\pi)^{b-1}$ times that is again a Beta density, and
# all that happens is that the counts are added to $\lambda = (a-1, b-1)$. These are its *natural
# parameters*, because with $T(\pi) = (\log\pi, \log(1-\pi))$ the density is
# $\exp(\lambda^\top T(\pi))$, up to a constant: multiplying densities adds their $\lambda$.
#
# Ada sees 9 heads and a tail, Ben 6 heads and 4 tails, and both start from the prior
# $\mathrm{Beta}(5, 5)$, the belief of somebody who has seen 4 heads and 4 tails before.

# %%
heads, tails = {"Ada": 9.0, "Ben": 6.0}, {"Ada": 1.0, "Ben": 4.0}
p0 = bm.Beta.from_concentrations(5.0, 5.0)


def flips(s, f):
    """The likelihood of s heads and f tails, a Beta with natural parameters (s, f)."""
    return bm.Beta.from_concentrations(s + 1.0, f + 1.0)


q = {name: p0 * flips(heads[name], tails[name]) for name in heads}
pooled = p0 * flips(sum(heads.values()), sum(tails.values()))

naive = q["Ada"] * q["Ben"]
merged = p0**-1.0 * q["Ada"] ** 1.0 * q["Ben"] ** 1.0
same = bm.merge(q, {"Ada": 1.0, "Ben": 1.0}, prior=p0)

rows = {"prior": p0, **q, "all 20 flips": pooled, "q_Ada q_Ben": naive, "merged": merged}
print(f"{'':14s}{'a - 1':>7s}{'b - 1':>7s}{'mode':>8s}")
for name, p in rows.items():
    print(f"{name:14s}{p.successes:7.1f}{p.failures:7.1f}{p.mode():8.4f}")

# %% [markdown]
# The product $q_\mathrm{Ada}\,q_\mathrm{Ben}$ is not the posterior of all 20 flips. By Bayes' rule
# each $q_t$ is $p_0$ times a likelihood, so the product holds all the flips and *two* priors.
# Dividing one of them out leaves what we want, and that is FP-5 with $\alpha = (1, 1)$ and
# $\gamma = 1 - 2 = -1$:
#
# $$p_0^{-1}\,(p_0\,\pi^9(1-\pi)^1)\,(p_0\,\pi^6(1-\pi)^4) = p_0\,\pi^{15}(1-\pi)^5 .$$
#
# This is not an approximation. The third row from the bottom and the last are the same numbers.

# %%
grid = np.linspace(0.001, 0.999, 500)
fig, ax = plt.subplots()
ax.plot(grid, density(p0, grid), color="0.5", ls=":", label="prior, Beta(5, 5)")
ax.plot(grid, density(q["Ada"], grid), color=BLUE, ls="--", label="Ada, 9 heads of 10")
ax.plot(grid, density(q["Ben"], grid), color=GREEN, ls="-.", label="Ben, 6 heads of 10")
ax.plot(grid, density(naive, grid), color=RED, lw=1, label="product, prior counted twice")
ax.plot(grid, density(merged, grid), color="black", lw=2.2, label="merged, γ = −1")
ax.plot(grid[::12], density(pooled, grid)[::12], "o", color="black", mfc="white", label="all flips")
ax.set(xlabel="π, probability of heads", ylabel="density", xlim=(0, 1), ylim=(0, None))
_ = ax.legend(loc="upper left")

# %% [markdown]
# ## What happens without $\gamma$
#
# For two people the prior counted twice looks like a detail. It is not, because every further
# person brings the prior along again. Let $T$ people each see 4 heads and a tail. Their product is
# $q^T$, in natural parameters $T(\lambda_0 + (4, 1)) = (8T, 5T)$, whose mode is $8/13$ for every
# $T$. More data make it surer of the wrong number. With $\gamma = 1 - T$ the prior is counted once,
# $\lambda_0 + T(4, 1)$, and the mode goes to $4/5$.

# %%
counts = np.array([1, 2, 4, 8, 16, 32, 64, 128])
person = p0 * flips(4.0, 1.0)
crowd = {
    "without γ": [person ** float(T) for T in counts],
    "with γ = 1 − T": [p0 ** (1.0 - T) * person ** float(T) for T in counts],
}
crowd_modes = {name: np.array([p.mode() for p in ps]) for name, ps in crowd.items()}

fig, ax = plt.subplots()
for (name, ps), color, marker, shift in zip(
    crowd.items(), (RED, BLUE), "so", (0.97, 1.03), strict=True
):
    low, high = np.array([scipy.stats.beta(*p.concentrations).interval(0.95) for p in ps]).T
    ax.vlines(counts * shift, low, high, color=color, lw=1)
    ax.plot(counts * shift, crowd_modes[name], marker, color=color, label=name)
ax.axhline(0.8, color="0.4", ls=":", label="share of heads in the data")
ax.set(xscale="log", xlabel="T, number of people", ylabel="π, mode and 95% interval")
ax.set(xticks=counts, xticklabels=counts, ylim=(0.3, 0.9))
ax.minorticks_off()
_ = ax.legend(loc="lower right")

# %% [markdown]
# ## Gaussians: a precision-weighted average
#
# A Gaussian $\mathcal N(\mu, \Lambda^{-1})$ has natural parameters $(\Lambda\mu, \Lambda)$, since
# $\log q = \Lambda\mu\,\theta - \frac{1}{2}\Lambda\theta^2$ up to a constant. Adding these is all
# there is to merging, and the mode of the sum is a precision-weighted average (FP-10):
#
# $$\hat\theta_\alpha = (\gamma H_0 + \sum_t \alpha_t H_t)^{-1}
# (\gamma H_0\theta_0 + \sum_t \alpha_t H_t\theta_t),$$
#
# where $H_t$ is the precision of $q_t$ itself, prior included. FP-10 is printed without the terms
# in $\gamma$. The paper says that this takes $p_0 = \mathcal N(0, I)$ into account, but then
# $\gamma I$ still belongs in the first bracket (misprint 11), unless $\gamma = 0$.
#
# With all precisions set to one and $\theta_0 = 0$ it is the simple average
# $\sum_t\alpha_t\theta_t$ (FP-2 and FP-9). That is the assumption behind averaging models: all of
# them know equally much.
#
# Ada measures a length, in millimetres from a mark, four times, with mean 2 and unit noise; Ben
# twice, with mean −1; the prior is $\mathcal N(0, 1)$. Her posterior therefore has precision
# $1 + 4$ and mean $8/5$, his precision $1 + 2$ and mean $-2/3$.

# %%
prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
theta, H = {"Ada": 8 / 5, "Ben": -2 / 3}, {"Ada": 5.0, "Ben": 3.0}
g = {t: bm.IsotropicGaussian.from_mean_precision(jnp.array(theta[t]), H[t]) for t in theta}
ones = {"Ada": 1.0, "Ben": 1.0}
halves = {"Ada": 0.5, "Ben": 0.5}

gaussian = bm.merge(g, ones, prior)
by_hand = (-1 * 1 * 0 + 5 * (8 / 5) + 3 * (-2 / 3)) / (-1 * 1 + 5 + 3)
six_readings = (4 * 2 + 2 * (-1)) / (1 + 4 + 2)
as_printed = bm.schemes.hessian_weighted(theta, H, ones).mode()

print(f"merged mean             {gaussian.mode():.6f}   precision {gaussian.precision.value:.1f}")
print(f"FP-10 with γ, by hand   {by_hand:.6f}")
print(f"all six readings        {six_readings:.6f}")
print(f"FP-10 as printed        {as_printed:.6f}   (prior counted twice)")
print(f"simple average, α = ½   {bm.schemes.average(theta, halves).mode():.6f}")

# %% [markdown]
# ## Adding vectors
#
# Both calculations are the same picture. A posterior is an arrow $\lambda$; merging puts the arrows
# head to tail, $\lambda_\alpha = \gamma\lambda_0 + \sum_t\alpha_t\lambda_t$. The *direction* of an
# arrow says what is believed: for the Gaussian the mean is $\Lambda\mu / \Lambda$, for the coin the
# mode is $(a-1)/(a-1 + b-1)$. Its *length* says how firmly. So precision-weighted averaging is
# nothing but the direction of a sum, and simple averaging first rescales all arrows to the height
# $\Lambda = 1$.


# %%
def arrow(ax, start, vector, label, color, ls="-", offset=(6, 0)):
    start, vector = np.asarray(start, float), np.asarray(vector, float)
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.8, "ls": ls, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", start + vector, start, arrowprops=style)
    middle = start + 0.4 * vector
    ax.annotate(label, middle, xytext=offset, textcoords="offset points", color=color)


def as_vector(p):
    return np.array([float(x) for x in p.natural_parameters])


def head_to_tail(ax, before, qs, after, offsets):
    ada, ben, back = as_vector(qs["Ada"]), as_vector(qs["Ben"]), -as_vector(before)
    arrow(ax, (0, 0), ada, r"$\lambda_\mathrm{Ada}$", BLUE, offset=offsets[0])
    arrow(ax, ada, ben, r"$\lambda_\mathrm{Ben}$", GREEN, offset=offsets[1])
    arrow(ax, ada + ben, back, r"$\gamma\lambda_0$", RED, offset=offsets[2])
    arrow(ax, (0, 0), as_vector(after), r"$\lambda_\alpha$", "black", "--", offset=offsets[3])
    ax.plot(0, 0, "o", color="black")


fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6))
head_to_tail(left, p0, q, merged, [(6, -12), (8, -10), (6, -8), (-16, 6)])
left.set(xlabel="a − 1, heads", ylabel="b − 1, tails", xlim=(-2, 26), ylim=(-1, 15))
left.set_title("coin")
head_to_tail(right, prior, g, gaussian, [(6, -8), (8, 0), (-26, -6), (-16, 4)])
right.axhline(1, color="0.4", lw=1, ls=":")
right.text(8.9, 1.1, "Λ = 1", color="0.4", va="bottom", ha="right")
for name, color in (("Ada", BLUE), ("Ben", GREEN)):
    right.plot(theta[name], 1, "o", color=color)
    right.plot([0, theta[name]], [0, 1], color=color, lw=1)
right.plot(gaussian.mode(), 1, "o", color="black", mfc="white")
right.set(xlabel="Λμ, 1/mm", ylabel="Λ, 1/mm²", xlim=(-2.5, 9), ylim=(-0.5, 9))
_ = right.set_title("length: dots at Λ = 1 are the means")

# %% [markdown]
# ## Weights that are not 0 or 1
#
# A posterior to a power is the posterior of a discounted data set. The prior is not discounted
# along with it, thanks to $\gamma$:
#
# $$p_0^{1-\alpha}\,q^{\alpha} = p_0\,(\pi^s(1-\pi)^f)^\alpha, \qquad
# (1-\alpha)\lambda_0 + \alpha\lambda = \lambda_0 + \alpha\,(s, f).$$
#
# With $\alpha = \frac{1}{2}$ each of Ben's flips counts half, with $\alpha = 2$ it is as if all of
# them had been seen twice, and with $\alpha = 0$ he has never flipped. Below, Ada's weight is 1 and
# Ben's varies; one call of `merge` takes all the weightings.
#
# FP A.2 calls $a_\alpha$ and $b_\alpha$ weighted averages of the $a_t$ and $b_t$. Without a prior
# $a_\alpha - 1 = \sum_t\alpha_t(a_t - 1)$, so this is true only where $\sum_t\alpha_t = 1$
# (misprint 9): it is $a - 1$ that adds. Count the prior as a factor, and the exponents
# $\gamma, \alpha_1, \ldots$ always sum to one; then
# $a_\alpha = \gamma a_0 + \sum_t\alpha_ta_t$ does hold for every $\alpha$.

# %%
ben_weights = np.array([0.0, 0.5, 1.0, 2.0, 4.0])
discounted = bm.merge(q, {"Ada": 1.0, "Ben": ben_weights}, prior=p0)
a_alpha, b_alpha = discounted.concentrations

a0, a = p0.concentrations[0], {t: q[t].concentrations[0] for t in q}
print("weight of Ben       " + "".join(f"{w:8.1f}" for w in ben_weights))
print("a of the merge      " + "".join(f"{x:8.1f}" for x in a_alpha))
print("γa₀ + Σαa           ", end="")
print("".join(f"{-w * a0 + a['Ada'] + w * a['Ben']:8.1f}" for w in ben_weights))
print("Σαa                 " + "".join(f"{a['Ada'] + w * a['Ben']:8.1f}" for w in ben_weights))

fig, ax = plt.subplots()
for i, w in enumerate(ben_weights):
    one = bm.merge(q, {"Ada": 1.0, "Ben": w}, prior=p0)
    color = plt.cm.viridis(0.9 - 0.22 * i)
    ax.plot(grid, density(one, grid), color=color, lw=1 + 0.4 * i, label=f"{w:g}")
ax.axvline(0.6, color="0.4", ls=":", lw=1)
ax.text(0.595, 7.6, "Ben's 6 of 10", color="0.4", ha="right", va="top")
ax.set(xlabel="π, probability of heads", ylabel="density", xlim=(0.2, 1), ylim=(0, 8))
_ = ax.legend(loc="upper left", title="weight of Ben's flips")

# %% [markdown]
# ## Taking data away
#
# Products have quotients. Ada withdraws her flips: `bm.remove` divides by her likelihood factor
# $q_\mathrm{Ada}/p_0$, with natural parameters $(9, 1)$, and what is left is what Ben alone
# believed. But a quotient need not be a density. Here her factor is removed $w$ times from the
# merged posterior, $\lambda = (19 - 9w, 9 - w)$:
#
# - $w = 1$ is right.
# - $w = 2$ is a perfectly proper density, and wrong: it is the prior after $-3$ heads and 3
#   tails. No algorithm can find this out from the posterior alone.
# - $w = 2.2$ has $a = 0.2$. The density has a normaliser, but is infinite at $\pi = 0$, and there
#   is no mode inside the interval.
# - $w = 3$ has $a = -7$. There is no normaliser either: the quotient is *improper*.
#
# Improper quotients can be multiplied and divided freely, since they may become proper again. Asked
# for something they do not have they refuse, and say why.

# %%
ada = q["Ada"] / p0
quotients = {w: bm.remove(merged, ada, w) for w in (1.0, 2.0, 2.2, 3.0)}


def refusal(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return ""


no_mode = refusal(quotients[2.2].mode)
improper = refusal(quotients[3.0].mean)
infeasible = refusal(bm.merge, q, {"Ada": -2.0, "Ben": 1.0}, prior=p0)
for what, message in [
    ("mode, w = 2.2", no_mode),
    ("mean, w = 3", improper),
    ("merge with α = (−2, 1)", infeasible),
]:
    print(textwrap.fill(f"[{what}]  {message}", 94, subsequent_indent="    "), end="\n\n")

labels = {1.0: "Ben", 2.0: "wrong", 2.2: "no mode", 3.0: "improper"}
fig, ax = plt.subplots()
for (w, p), color, ls in zip(
    quotients.items(), (GREEN, BLUE, PINK, RED), ("-", "--", "-.", ":"), strict=True
):
    height = jax.vmap(p.log_density)(jnp.asarray(grid)) - p.log_density(jnp.array(0.5))
    ax.plot(grid, height, color=color, ls=ls, label=f"w = {w:g}: {labels[w]}")
ax.set(xlabel="π, probability of heads", ylabel="log density, 0 at π = ½", xlim=(0, 1))
ax.set(ylim=(-6, 8))
_ = ax.legend(loc="upper right")

# %% [markdown]
# Only a finite area under $\exp$ of the curve can be scaled to one, and with $w = 3$ it rises like
# $\pi^{-8}$ towards $\pi = 0$. The last message above comes from `merge`, which looks for
# impropriety wherever a weight or $\gamma$ is negative, and computes how far one could have gone:
# scaled by $s$ the weights $(-2, 1)$ give $a - 1 = 4 - 12s$, and that is above −1 for
# $s < 5/12 = 0.41666\ldots$
#
# ## The mode depends on the space it is taken in
#
# The merged *model* is the mode of the merged posterior. FP A.2 works with the log-odds
# $\theta = \log(\pi/(1-\pi))$ and prints
# $\hat\pi_\alpha = \log((a_\alpha - 1)/(a_\alpha + b_\alpha - 2))$. The logarithm of a number
# below one is negative and no probability: there should be no log (misprint 8).
#
# The rest is subtler. As a density in $\theta$, which carries the Jacobian
# $d\pi/d\theta = \pi(1-\pi)$, the Beta is proportional to $\pi^a(1-\pi)^b$ and has its mode at
# $\theta = \log(a/b)$. FP-13 gives $\hat\theta_\alpha = \log((a_\alpha - 1)/(b_\alpha - 1))$,
# the log-odds of the mode of the density in $\pi$. Both are modes of the same posterior, and they
# differ. After three flips, two heads and a tail, and without a prior:

# %%
few = flips(2.0, 1.0)
mode_in_probability = few.mode()
mode_in_logit = few.mode("logit")
print(f"argmax over π of the density in π:  π = {mode_in_probability:.4f}, ", end="")
print(f"log-odds {logit(mode_in_probability):.4f}, as FP-13")
print(f"argmax over θ of the density in θ:  θ = {mode_in_logit:.4f}, ", end="")
print(f"so π = {jax.nn.sigmoid(mode_in_logit):.4f}, the mean {few.mean():.4f}")

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
odds = np.linspace(-4, 5, 500)
prob = jax.nn.sigmoid(odds)
in_logit = density(few, prob) * prob * (1 - prob)
left.plot(grid, density(few, grid), color="black")
left.set(xlabel="π", ylabel="density in π", xlim=(0, 1), ylim=(0, 2.3))
right.plot(odds, in_logit, color="black")
right.set(xlabel="θ = log π/(1 − π)", ylabel="density in θ", xlim=(-4, 5), ylim=(0, 0.48))
for point, name, color, ls in [
    (logit(mode_in_probability), "mode in π", BLUE, "--"),
    (mode_in_logit, "mode in θ", RED, ":"),
]:
    p = float(jax.nn.sigmoid(point))
    left.plot(
        [p, p], [0, float(jnp.exp(few.log_prob(jnp.asarray(p))))], color=color, ls=ls, label=name
    )
    right.plot(
        [point] * 2,
        [0, float(jnp.exp(few.log_prob(jnp.asarray(p)))) * p * (1 - p)],
        color=color,
        ls=ls,
    )
_ = left.legend(loc="upper left")

# %% [markdown]
# The density in $\pi$ is highest at $2/3$, that in $\theta$ at $\log(3/2)$, which is $\pi = 3/5$,
# the mean. The two come together as flips accumulate, at the rate of one over their number. So say
# which space a mode is taken in: `mode()` and `mode("logit")`.
#
# The merged *posterior* does not have this problem, and the reason is $\gamma$ once more. In
# another coordinate every density is multiplied by the Jacobian $J$, so the product in FP-5 is
# multiplied by $J^{\gamma + \sum_t\alpha_t} = J^1$. Merging in $\pi$ and merging in $\theta$ give
# the same distribution, for every $\alpha$. The product without $\gamma$ collects $J^2$ from two
# people: it would mean one thing for those who think in probabilities, another for those who think
# in log-odds. The integrals below are Gauss-Legendre sums over $\pi$, exact for these polynomials.

# %%
nodes, node_weights = np.polynomial.legendre.leggauss(100)
nodes, node_weights = (nodes + 1) / 2, node_weights / 2
J = nodes * (1 - nodes)


def mean_of_product(exponents, jacobian):
    """E[π] of the normalised product of densities that carry `jacobian`."""
    factors = {"prior": p0, **q}
    logs = [
        e * np.log(scipy.stats.beta(*factors[name].concentrations).pdf(nodes) * jacobian)
        for name, e in exponents.items()
    ]
    in_probability = np.exp(sum(logs)) / jacobian * node_weights
    return np.sum(nodes * in_probability) / np.sum(in_probability)


with_gamma = {"prior": -1.0, "Ada": 1.0, "Ben": 1.0}
without_gamma = {"Ada": 1.0, "Ben": 1.0}
means = {
    (name, space): mean_of_product(exponents, jacobian)
    for name, exponents in (("with γ", with_gamma), ("without γ", without_gamma))
    for space, jacobian in (("probabilities", np.ones_like(J)), ("log-odds", J))
}
for (name, space), mean in means.items():
    print(f"mean of the merge in {space:14s} {name:10s} {mean:.6f}")

# %% [markdown]
# ## The mode of any exponential family
#
# FP-13 puts the Gaussian and the coin under one roof. Write $p_\alpha$ as a function of $\theta$ in
# the form $\exp(\theta\, t(\lambda_\alpha) - A(\theta))$, and its maximum solves
# $\nabla A(\hat\theta_\alpha) = t(\lambda_\alpha)$. For the Gaussian $t = \Lambda\mu$ and
# $A = \frac{1}{2}\Lambda\theta^2$; for the coin $t = a - 1$ and
# $A = (a + b - 2)\log(1 + e^\theta)$. This $A$ holds no Jacobian, so what it finds for the coin is
# the mode in $\pi$, expressed as $\theta$. We differentiate both.

# %%
trials = merged.successes + merged.failures
forms = {
    "length": (
        lambda x: 0.5 * gaussian.precision.value * x**2,
        gaussian.linear,
        gaussian.mode(),
    ),
    "coin": (
        lambda x: trials * jax.nn.softplus(x),
        merged.successes,
        logit(merged.mode()),
    ),
}
stationary = {name: (jax.grad(A)(mode), t) for name, (A, t, mode) in forms.items()}
for name, (gradient, t) in stationary.items():
    print(f"{name:8s} gradient of A at the mode {float(gradient):10.6f}   t {float(t):10.6f}")

# %% [markdown]
# ## What FP-5 needs
#
# Two things, besides posteriors of one family. The data sets must be independent given $\theta$: if
# Ben only copied Ada's notes, the merge counts the same ten flips twice, with nothing to show
# for it. And everybody must have started from the same $p_0$; otherwise divide each posterior by
# its own prior, $p_0\prod_t (q_t/p_t)^{\alpha_t}$, which is FP-5 when all $p_t$ are $p_0$.
#
# ## What we claimed, checked
#
# Against `scipy.stats`, quadrature and grids.


# %%
def close(x, y, tolerance=1e-12):
    difference = np.max(np.abs(np.asarray(x, float) - np.asarray(y, float)))
    assert difference < tolerance, difference


# Merging is the posterior of all flips; so scipy says, and so does the brute-force product.
close(as_vector(merged), as_vector(pooled))
close(as_vector(same), as_vector(pooled))
close(as_vector(naive) - as_vector(pooled), as_vector(p0))
close(density(merged, grid), scipy.stats.beta(20, 10).pdf(grid), 1e-10)
product = np.exp(
    scipy.stats.beta(14, 6).logpdf(nodes)
    + scipy.stats.beta(11, 9).logpdf(nodes)
    - scipy.stats.beta(5, 5).logpdf(nodes)
)
close(density(merged, nodes), product / np.sum(product * node_weights), 1e-10)

# Without γ the mode is stuck at 8/13; with it, it goes to 4/5.
close(crowd_modes["without γ"], 8 / 13)
close(crowd_modes["with γ = 1 − T"], (4 + 4 * counts) / (8 + 5 * counts))
assert abs(crowd_modes["with γ = 1 − T"][-1] - 0.8) < 0.005
widths = [np.ptp(scipy.stats.beta(*p.concentrations).interval(0.95)) for p in crowd["without γ"]]
assert np.all(np.diff(widths) < 0)
assert scipy.stats.beta(*crowd["without γ"][-1].concentrations).interval(0.95)[1] < 0.8

# The precision-weighted average, its special cases, and the misprint.
close(gaussian.mode(), six_readings)
close(by_hand, six_readings)
close(as_printed, 6 / 8)
close(bm.merge(g, halves, prior).mode(), bm.schemes.hessian_weighted(theta, H, halves).mode())
close(bm.schemes.average(theta, halves).mode(), (8 / 5 - 2 / 3) / 2)
line = np.linspace(-8, 10, 20001)
log_product = sum(scipy.stats.norm(theta[t], H[t] ** -0.5).logpdf(line) for t in theta)
log_product -= scipy.stats.norm(0, 1).logpdf(line)
brute = np.exp(log_product - log_product.max())
brute /= np.trapezoid(brute, line)
close(density(gaussian, line), brute, 1e-10)
close(np.trapezoid(line * brute, line), gaussian.mean(), 1e-10)
objective = -1 * 0.5 * line**2 + sum(0.5 * (line - theta[t]) ** 2 for t in theta)
close(line[np.argmin(objective)], bm.schemes.average(theta, ones).mode(), line[1] - line[0])

# Arrows add, directions are modes.
close(as_vector(q["Ada"]) + as_vector(q["Ben"]) - as_vector(p0), as_vector(merged))
close(as_vector(g["Ada"]) + as_vector(g["Ben"]) - as_vector(prior), as_vector(gaussian))
close(as_vector(merged)[0] / as_vector(merged).sum(), merged.mode())
close(as_vector(gaussian)[0] / as_vector(gaussian)[1], gaussian.mode())

# Powers are discounts, a − 1 adds, and a averages once the prior is one of the factors.
close(a_alpha, 5 + 9 + 6 * ben_weights)
close(b_alpha, 5 + 1 + 4 * ben_weights)
close(a_alpha, -ben_weights * a0 + a["Ada"] + ben_weights * a["Ben"])
sums_to_one = bm.merge(q, halves)
close(sums_to_one.concentrations[0], 0.5 * a["Ada"] + 0.5 * a["Ben"])
close(bm.merge(q, ones).concentrations[0], a["Ada"] + a["Ben"] - 1)

# Removal, and its failures.
close(as_vector(quotients[1.0]), as_vector(q["Ben"]))
assert quotients[2.0].is_proper()
close(as_vector(quotients[2.0]), as_vector(p0) + np.array([-3, 3]))
assert quotients[2.2].is_proper()
assert not quotients[3.0].is_proper()
assert "no mode inside" in no_mode
assert "improper" in improper
assert "0.416667" in infeasible
close(as_vector(quotients[3.0] * ada * ada), as_vector(q["Ben"]))

# Modes, each the argmax of its own density, and the printed formula.
close(grid[np.argmax(density(few, grid))], 2 / 3, grid[1] - grid[0])
close(odds[np.argmax(in_logit)], np.log(3 / 2), odds[1] - odds[0])
close(mode_in_probability, 2 / 3)
close(mode_in_logit, np.log(3 / 2))
close(logit(mode_in_probability), np.log(2))
close(jax.nn.sigmoid(mode_in_logit), few.mean())
assert np.log(2 / 3) < 0
many = flips(2000.0, 1000.0)
gaps = [float(p.mode() - jax.nn.sigmoid(p.mode("logit"))) for p in (many, flips(4000.0, 2000.0))]
close(gaps[0] / gaps[1], 2, 0.01)

# The merged distribution is the same in every coordinate because exponents sum to one.
close(means["with γ", "probabilities"], merged.mean())
close(means["with γ", "log-odds"], merged.mean())
close(means["without γ", "probabilities"], naive.mean())
assert abs(means["without γ", "log-odds"] - naive.mean()) > 0.003

for gradient, t in stationary.values():
    close(gradient, t)

# Flips counted twice, and different priors.
copied = bm.merge([q["Ada"], q["Ada"]], [1.0, 1.0], prior=p0)
own_prior = bm.Beta.from_concentrations(2.0, 7.0)
ben_from_elsewhere = own_prior * flips(6.0, 4.0)
unlike = p0 * (q["Ada"] / p0) * (ben_from_elsewhere / own_prior)
close(as_vector(copied), (4 + 2 * 9, 4 + 2 * 1))
close(as_vector(unlike), as_vector(pooled))
print("all checked")
