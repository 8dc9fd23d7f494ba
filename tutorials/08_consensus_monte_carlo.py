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
# # Consensus Monte Carlo
#
# MCMC on every shard of the data, in parallel, and the draws brought together afterwards: that is
# consensus Monte Carlo (Scott et al., 2016). In the language of this library it is a merge of
# Gaussians that have the moments of the draws.
#
# You will see how to divide out a prior that every shard has used, how near to MCMC on all data
# this is with four shards and how far off with sixteen, what skewness has to do with it, what
# kernel densities change (Neiswanger et al., 2014), and two ways from the consensus to the exact
# posterior: importance weights, with Pareto's $k$ to say whether they can be trusted, and
# refinement.

# %%
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer

import bayesmerge as bm
from bayesmerge.diagnostics import as_gaussian, difference, reweighted
from bayesmerge.fit import fit_shards, kernel_density, likelihood_factor, moment_matched

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    from bayesmerge.numpyro import with_factor

jax.config.update("jax_enable_x64", True)
plt.style.use("bayesmerge.style")
BLUE, RED, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"

# %% [markdown]
# ## The model
#
# Is a breast tumour malignant? Four measurements of cell nuclei, standardised, in a logistic
# regression. Nine of the 569 patients, drawn at random, are left out, so that the rest
# divide into shards of one size. The priors are Student's t with three degrees of freedom,
# a usual choice for coefficients that should be small and may be large. No Gaussian,
# so it will matter how one divides by it.
#
# The model is in two functions. The second observes data; the first is the prior alone, which
# we need later.

# %%
table = load_breast_cancer()
columns = ["mean texture", "mean area", "mean smoothness", "mean concavity"]
names = list(table.feature_names)
standard = (table.data - table.data.mean(0)) / table.data.std(0)
malignant = 1 - table.target
kept = np.random.default_rng(0).permutation(569)[:560]
x = jnp.asarray(standard[kept][:, [names.index(c) for c in columns]])
y = jnp.asarray(malignant[kept])


def coefficients(count):
    a = numpyro.sample("intercept", dist.StudentT(3.0, 0.0, 2.5))
    w = numpyro.sample("w", dist.StudentT(3.0, 0.0, 1.0).expand([count]).to_event(1))
    return a, w


def model(x, y=None):
    a, w = coefficients(x.shape[1])
    with numpyro.plate("patient", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=a + x @ w), obs=y)


def nuts(model, *data, key=0):
    mcmc = MCMC(NUTS(model, dense_mass=True), num_warmup=300, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(key), *data)
    return mcmc.get_samples()


@jax.jit
def nuts_on_shards(xs, ys):
    return jax.vmap(lambda x, y, key: nuts(model, x, y, key=key))(xs, ys, jnp.arange(len(xs)))


# %% [markdown]
# A shard's MCMC is a JAX function of its data, so `vmap` runs it on all shards at once. On
# all data in one place there are four chains; they are the reference.

# %%
everything = bm.numpyro.target(model, x, y)
copies = [jnp.stack([data] * 4) for data in (x, y)]
chains = everything.model.unconstrain(nuts_on_shards(*copies))
reference = jax.tree.map(lambda z: z.reshape((-1, *z.shape[2:])), chains)
exact = moment_matched(reference)
r_hat = max(float(np.max(numpyro.diagnostics.gelman_rubin(z))) for z in chains.values())
prior = bm.numpyro.prior(everything)
full = bm.laplace(everything, prior)
print(f"R-hat at most {r_hat:.3f}; the prior is a {type(prior).__name__}")

# %% [markdown]
# ## Consensus
#
# Every shard uses the whole prior. (Scott et al. give each shard the $T$-th root of it. Then
# there is nothing to divide out, but no shard has fitted the model anyone wrote down.) The draws of
# shard $t$, in unconstrained coordinates, are replaced by the Gaussian with their mean and
# covariance, $q_t = \mathcal N(\bar\theta_t, \hat\Sigma_t)$, and these are merged with $\gamma =
# 1 - T$,
#
# $$p(\theta) \propto p_0(\theta)^{1-T}\prod_{t=1}^T q_t(\theta).$$
#
# The prior is not Gaussian. `merge` with an exact prior divides each $q_t$ by the Gaussian
# that matches $p_0$ to second order at the mode of $q_t$, and multiplies by $p_0$ itself once.
# For comparison, the table has the merge of sixteen Laplace posteriors, and Laplace's posterior of
# all data. The reference is NUTS on all data.


# %%
def split(count):
    return x.reshape(count, -1, 4), y.reshape(count, -1)


draws, consensus, merged = {}, {}, {}
for count in (4, 16):
    batch = everything.model.unconstrain(nuts_on_shards(*split(count)))
    draws[count] = [jax.tree.map(lambda z, t=t: z[t], batch) for t in range(count)]
    shards = [moment_matched(z) for z in draws[count]]
    consensus[count] = bm.merge(shards, jnp.ones(count), prior)
    merged[f"consensus, {count}"] = as_gaussian(consensus[count])
laplace = fit_shards(
    [bm.numpyro.target(model, *shard) for shard in zip(*split(16), strict=True)], prior
)
merged["Laplace, 16"] = as_gaussian(bm.merge(laplace, dict.fromkeys(laplace, 1.0), prior))
merged["Laplace, all data"] = full
off = {name: difference(q, exact) for name, q in merged.items()}


def report(rows):
    print(f"{'':26s}{'shift of the mean, sd':^36s}{'sd ratio':>10s}{'KL':>8s}")
    print(
        f"{'':26s}" + "".join(f"{c.split()[1]:>12s}"[:12] for c in columns) + f"{'smallest':>10s}"
    )
    for name, d in rows.items():
        shifts = "".join(f"{s:10.2f}" for s in d.shift["w"])
        smallest = float(jnp.min(d.spread["w"]))
        print(f"{name:22s}{shifts}{smallest:12.2f}{float(d.divergence):10.2f}")


report(off)

# %% [markdown]
# With four shards of 140 patients, consensus is within 0.3 standard deviations. With sixteen
# shards of 35 it is off by more than one, and sure of it: the smallest standard deviation is half
# of what it should be. Merged Laplace posteriors are far worse than consensus with the same
# shards, since a mode of a skewed density is a worse summary than a mean. On all
# data the two hardly differ.
#
# ## What goes wrong
#
# Look at one of the sixteen shards. A plane nearly separates its thirty-five patients. The
# likelihood then bounds coefficients from below and hardly from above, and the posterior has a
# long tail to the right. Where the other shards agree, the Gaussian with the same moments
# has the wrong slope. One such error is small. Sixteen of one sign add up, while
# the standard deviation shrinks.

# %%
which = columns.index("mean texture")


def skewness(z):
    return float(jnp.mean((z - z.mean()) ** 3) / z.std() ** 3)


skew = {count: [skewness(z["w"][:, which]) for z in shards] for count, shards in draws.items()} | {
    1: [skewness(reference["w"][:, which])]
}
for count, values in sorted(skew.items()):
    print(
        f"shards: {count:2d}, average skewness of the coefficient of texture {np.mean(values):.2f}"
    )

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.2))
worst = int(np.argmax(skew[16]))
bins = {"bins": 80, "density": True}
z = np.asarray(draws[16][worst]["w"][:, which])
grid = np.linspace(-2, 9, 400)


def normal(q, at):
    mean, variance = q.mode()["w"][which], q.variance()["w"][which]
    return np.exp(-0.5 * (at - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)


left.hist(z, range=(-2, 9), color="0.8", label="NUTS", **bins)
left.plot(grid, normal(moment_matched(draws[16][worst]), grid), color=RED, label="same moments")
left.axvline(exact.mode()["w"][which], color="black", ls=":", lw=1.2)
left.annotate(
    "mean, all data", (exact.mode()["w"][which], 0.62), (4, 0), textcoords="offset points"
)
left.set(title="the most skewed of 16 shards", xlabel="coefficient of texture", ylabel="density")
left.set(ylim=(0, 0.68), xlim=(-2, 7))
left.legend(loc="center right")
grid = np.linspace(0, 3.5, 400)
right.hist(np.asarray(reference["w"][:, which]), range=(0, 3.5), color="0.8", label="NUTS", **bins)
for name, (color, style) in {
    "consensus, 4": (BLUE, "-"),
    "consensus, 16": (RED, "--"),
    "Laplace, 16": (PINK, ":"),
}.items():
    right.plot(grid, normal(merged[name], grid), color=color, ls=style, label=name)
right.set(title="all data", xlabel="coefficient of texture")
_ = right.legend()

# %% [markdown]
# ## Is it the prior?
#
# The prior has been divided out approximately, so one may suspect it. The merged posterior is
# $p_0(\theta)\,G(\theta)$ with the product $G$ of all likelihood factors. `with_factor` puts $G$
# into the model of the prior alone, and NUTS draws from $p_0G$ with the exact prior, once.

# %%
factor = consensus[16].factor
tilted_model = with_factor(coefficients, factor)
sampled = moment_matched(jax.jit(lambda: nuts(tilted_model, 4))())
prior_part = difference(sampled, merged["consensus, 16"])
report({"with the exact prior": difference(sampled, exact), "consensus, 16": off["consensus, 16"]})
without = as_gaussian(bm.merge([moment_matched(z) for z in draws[16]], jnp.ones(16)))
report({"prior sixteen times": difference(without, exact)})

# %% [markdown]
# It is not. That $p_0$ is exact in the end changes nothing, so the error is in the factors. What
# matters is that the prior is divided out at all. With sixteen copies of it coefficients are
# pulled to zero.
#
# ## One parameter, kernel densities
#
# Products of kernel densities keep skewness: every draw of a shard becomes a small Gaussian, and
# the product is one of mixtures (`kernel_density`). To see whether this helps, one needs the exact
# answer, so we take a model with a single coefficient, for the worst area, with a Gaussian prior.
# Its posterior can be tabulated. There are eight shards of twenty patients, and all of it
# is done four times, with other patients.


# %%
def line(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 3.0))
    with numpyro.plate("patient", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=w * x), obs=y)


T, size = 8, 20
rng = np.random.default_rng(1)
rows = np.stack([rng.permutation(569)[: T * size].reshape(T, size) for _ in range(4)])
inputs, labels = jnp.asarray(standard[:, names.index("worst area")][rows]), malignant[rows]
run = jax.jit(jax.vmap(jax.vmap(lambda x, y, key: nuts(line, x, y, key=key))))
line_draws = run(inputs, jnp.asarray(labels), jnp.arange(4 * T).reshape(4, T))["w"]
p0 = bm.IsotropicGaussian.from_mean_precision({"w": jnp.array(0.0)}, 1 / 9)
points = jnp.linspace(-2, 16, 901)
step = float(points[1] - points[0])


@jax.jit
def log_table(q):
    return jax.vmap(lambda w: q.log_density({"w": w}))(points)


def density(log):
    log = np.exp(np.asarray(log) - np.max(log))
    return log / (log.sum() * step)


def log_likelihood(x, y):
    logits = points[:, None] * x
    return np.asarray(jnp.sum(dist.Bernoulli(logits=logits).log_prob(y), axis=1))


methods = {
    "Gaussian": moment_matched,
    "200 kernels": lambda z: kernel_density(z, num_components=200),
    "2000 kernels": kernel_density,
}
tabulated = {name: [] for name in ("exact", *methods)}
for division, shards in enumerate(line_draws):
    log = log_table(p0)
    for t in range(T):
        log = log + log_likelihood(inputs[division, t], labels[division, t])
    tabulated["exact"].append(density(log))
    for name, method in methods.items():
        product = bm.merge([method({"w": z}) for z in shards], jnp.ones(T), p0)
        tabulated[name].append(density(log_table(product)))
variation = {
    name: 0.5 * step * np.abs(np.subtract(tabulated[name], tabulated["exact"])).sum(1)
    for name in methods
}
print("total variation from the exact posterior, four times")
for name, v in variation.items():
    print(f"{name:14s}" + "".join(f"{e:7.2f}" for e in v) + f"   mean {v.mean():.3f}")

# %%
fig, axes = plt.subplots(1, 3, figsize=(7.8, 2.8), sharey=True, sharex=True)
for ax, division in zip(axes, range(3), strict=True):
    ax.fill_between(points, tabulated["exact"][division], color="0.85", lw=0, label="exact")
    for name, (color, style) in zip(methods, ((RED, "-"), (PINK, ":"), (BLUE, "--")), strict=True):
        ax.plot(points, tabulated[name][division], color=color, ls=style, lw=1.4, label=name)
    ax.set(xlabel="coefficient", title=f"division {division + 1}", xlim=(2, 11))
axes[0].set_ylabel("density")
_ = fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)

# %% [markdown]
# With 2000 kernels a product is much nearer than the Gaussians; with 200 hardly. The error
# of the Gaussians stays however many draws there are. That of kernels falls with their number,
# slowly, and the more so the more parameters there are: kernels are for one to three dimensions.
#
# ## Two ways on
#
# **Importance weights.** Draw from the consensus Gaussian, let every shard compute its
# log-likelihood of the draws, and weigh them by the exact posterior. Pareto's $k$ of the weights'
# tail says whether that is reliable (below 0.7).
#
# **Refinement.** Expand every shard at the consensus mean, which costs a gradient and a Hessian
# each, and merge again. What can be refined can be reweighted.
#
# Log-likelihoods, gradients and Hessians of shards add up, so here we compute the sums in
# one go, with the target of all data.

# %%
weighted, refined, mean_off = {}, {}, {}
sd = jnp.sqrt(exact.variance()["w"])


def farthest(mean):
    return float(jnp.abs((mean["w"] - exact.mode()["w"]) / sd).max())


for count in (4, 16):
    start = merged[f"consensus, {count}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bm.ConvergenceWarning)
        refined[count] = as_gaussian(bm.refine([everything], start, [1.0], prior))
    mean_off[count] = {}
    for name, q in {"consensus": start, "refined": refined[count]}.items():
        found = reweighted(q, everything, prior, jax.random.key(1), 4000)
        weighted[count, name] = found
        mean_off[count][name] = farthest(q.mode())
        mean_off[count][f"{name}, reweighted"] = farthest(found.mean())

report({f"{count}, refined once": difference(q, exact) for count, q in refined.items()})
print()
for (count, name), found in weighted.items():
    size = f"{found.effective_samples:.0f} of 4000"
    print(f"{count:2d} shards, {name:10s} k = {found.k:5.2f}, effective samples {size}")

# %%
fig, ax = plt.subplots(figsize=(7, 3.0))
colors = {"consensus": RED, "refined": BLUE}
for i, name in enumerate(("consensus", "consensus, reweighted", "refined", "refined, reweighted")):
    heights = [mean_off[count][name] for count in (4, 16)]
    places = np.arange(2) + 0.22 * (i - 1.5)
    kind, _, how = name.partition(", ")
    ax.bar(places, heights, 0.19, color=colors[kind], alpha=0.5 if how else 1.0)
    for place, height in zip(places, heights, strict=True):
        ax.annotate(f"{height:.2f}", (place, height), ha="center", va="bottom", size=8.5)
    label = name.replace(", ", ",\n")
    ax.annotate(label, (places[1], -0.03), ha="center", va="top", size=7, annotation_clip=False)
    ax.annotate(label, (places[0], -0.03), ha="center", va="top", size=7, annotation_clip=False)
ax.set(xticks=[], ylim=(0, 1.55), axisbelow=True)
for place, count in enumerate((4, 16)):
    ax.annotate(f"{count} shards", (place, 1.5), ha="center", va="top")
_ = ax.set_ylabel("largest distance of a mean\nfrom NUTS, standard deviations")

# %% [markdown]
# With four shards the weights of the consensus are reliable, and the weighted mean is that of
# NUTS. With sixteen $k$ is above 0.7, few draws carry all the weight, and the weighted mean,
# though better, is not to be trusted: the consensus Gaussian is too narrow and in the wrong
# place. One refinement halves its error and widens it, and then the weights are reliable.
# Refinement alone leads to Laplace's posterior of all data, with its mode in the place of a mean.
# That is a gain over sixteen shards and none over four.
#
# ## When
#
# Consensus is good where every shard alone determines the parameters: there its posterior is
# nearly Gaussian, and the merge of four was within 0.3 standard deviations without
# seeing data again. It is poor where shards are so small that posteriors are skewed, or that the
# prior is what keeps them proper, and it does not say so itself: its standard deviations are too
# small where it is wrong. Fewer and larger shards help. So do refinement and weights, together and
# in this order, at the price of asking every shard once more. Kernel densities help in one
# parameter, with many draws.
#
# ## What we claimed, checked

# %%
assert r_hat < 1.02

# Consensus: fair with four, poor with sixteen, better than Laplace with the same shards.
kl = {name: float(d.divergence) for name, d in off.items()}
assert jnp.abs(off["consensus, 4"].shift["w"]).max() < 0.35
assert jnp.abs(off["consensus, 16"].shift["w"]).max() > 1
assert off["consensus, 16"].spread["w"].min() < 0.7
assert kl["consensus, 16"] < 0.3 * kl["Laplace, 16"]
assert kl["Laplace, all data"] < kl["consensus, 4"] < 0.4 < kl["consensus, 16"]

# Merging by hand: sums of natural parameters, the prior's expansion taken from each.
shards = [moment_matched(z) for z in draws[4]]
factors = [likelihood_factor(q, prior) for q in shards]
precision = sum(
    np.linalg.inv(np.cov(np.column_stack([z["intercept"], z["w"]]).T)) for z in draws[4]
)
expansions = sum(np.asarray((q / f).precision.value) for q, f in zip(shards, factors, strict=True))
ours = np.asarray(consensus[4].factor.precision.value)
assert np.abs(ours - (precision - expansions)).max() < 1e-9 * np.abs(ours).max()

# Skewness grows as shards get smaller, nearly always to the right.
assert np.mean(skew[1]) < np.mean(skew[4]) < np.mean(skew[16])
assert np.mean(np.array(skew[16]) > 0) > 0.9

# The prior is not to blame, and counting it sixteen times is no option.
assert abs(float(difference(sampled, exact).divergence) / kl["consensus, 16"] - 1) < 0.2
assert abs(prior_part.largest[1]) < 0.2
assert difference(without, exact).divergence > 3 * kl["consensus, 16"]
assert (jnp.abs(without.mode()["w"]) < jnp.abs(exact.mode()["w"])).all()

# Kernels.
assert variation["2000 kernels"].mean() < 0.75 * variation["Gaussian"].mean()
assert variation["200 kernels"].mean() > 0.75 * variation["Gaussian"].mean()
assert (variation["2000 kernels"] < variation["Gaussian"]).all()

# Weights and refinement.
k = {key: found.k for key, found in weighted.items()}
assert k[4, "consensus"] < 0.7 < k[16, "consensus"]
assert k[16, "refined"] < 0.7
assert mean_off[4]["consensus, reweighted"] < 0.1
assert mean_off[16]["refined, reweighted"] < 0.15
assert mean_off[16]["consensus, reweighted"] > mean_off[16]["refined, reweighted"]
assert weighted[16, "consensus"].effective_samples < 200
assert difference(refined[16], exact).divergence < 0.2 * kl["consensus, 16"]
assert mean_off[16]["refined"] < 0.6 * mean_off[16]["consensus"]
assert mean_off[4]["refined"] > 0.8 * mean_off[4]["consensus"]
print("all checked")
