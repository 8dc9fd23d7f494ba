"""NumPyro models of many kinds with real data, cut into shards: for tests and the benchmark."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import LocScaleReparam
from sklearn import datasets
from statsmodels import datasets as tables


@dataclasses.dataclass(frozen=True)
class Example:
    """A model, its data by rows, and arguments that are the same for all shards.

    - `shards`: how many, of equal numbers of rows but for the rest.
    - `by`: rows are dealt out in this order; by default in turn.
    """

    model: Callable[..., Any]
    data: Callable[[], tuple[np.ndarray, ...]]
    fixed: tuple[Any, ...] = ()
    shards: int = 4
    consecutive: bool = False

    def rows(self) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(x) for x in self.data())

    def parts(self) -> list[tuple[Any, ...]]:
        """The model's arguments for every shard."""
        rows = self.rows()
        count = len(rows[0])
        index = [np.arange(t, count, self.shards) for t in range(self.shards)]
        if self.consecutive:
            index = np.array_split(np.arange(count), self.shards)
        return [(*(x[i] for x in rows), *self.fixed) for i in index]

    def whole(self) -> tuple[Any, ...]:
        """The model's arguments for all data."""
        return (*self.rows(), *self.fixed)


def standardised(x: Any) -> np.ndarray:
    x = np.asarray(x, float)
    return (x - x.mean(axis=0)) / x.std(axis=0)


def observe(size: int) -> Any:
    return numpyro.plate("rows", size)


def linear(X: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    with observe(len(y)):
        numpyro.sample("y", dist.Normal(X @ beta, 0.7), obs=y)


def linear_scale(X: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with observe(len(y)):
        numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def robust(x: Any, y: Any) -> None:
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(1.0))
    nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
    with observe(len(y)):
        numpyro.sample("y", dist.StudentT(nu, a + b * x, sigma), obs=y)


def logistic(X: Any, y: Any) -> None:
    bias = numpyro.sample("bias", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    with observe(len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=bias + X @ beta), obs=y)


def poisson(X: Any, y: Any) -> None:
    bias = numpyro.sample("bias", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    with observe(len(y)):
        numpyro.sample("y", dist.Poisson(jnp.exp(bias + X @ beta)), obs=y)


def negative_binomial(X: Any, y: Any) -> None:
    bias = numpyro.sample("bias", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    phi = numpyro.sample("phi", dist.Gamma(2.0, 1.0))
    with observe(len(y)):
        numpyro.sample("y", dist.NegativeBinomial2(jnp.exp(bias + X @ beta), phi), obs=y)


def firms_centred(firm: Any, x: Any, y: Any, num_firms: int) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("firms", num_firms):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    with observe(len(y)):
        numpyro.sample("y", dist.Normal(alpha[firm] + slope * x, sigma), obs=y)


def firms_non_centred(firm: Any, x: Any, y: Any, num_firms: int) -> None:
    reparametrised = {"alpha": LocScaleReparam(0.0)}
    numpyro.handlers.reparam(firms_centred, config=reparametrised)(firm, x, y, num_firms)


def schools_centred(school: Any, y: Any, sd: Any, num_schools: int) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", num_schools):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    with observe(len(y)):
        numpyro.sample("y", dist.Normal(theta[school], sd), obs=y)


def schools_non_centred(school: Any, y: Any, sd: Any, num_schools: int) -> None:
    reparametrised = {"theta": LocScaleReparam(0.0)}
    numpyro.handlers.reparam(schools_centred, config=reparametrised)(school, y, sd, num_schools)


def scales(group: Any, y: Any, num_groups: int) -> None:
    with numpyro.plate("groups", num_groups):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        sigma = numpyro.sample("sigma", dist.Gamma(2.0, 2.0))
    with observe(len(y)):
        numpyro.sample("y", dist.Normal(mu[group], sigma[group]), obs=y)


def shares(category: Any, num_categories: int) -> None:
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(num_categories)))
    with observe(len(category)):
        numpyro.sample("category", dist.Categorical(p), obs=category)


def correlated(y: Any) -> None:
    size = y.shape[1]
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0).expand([size]).to_event(1))
    L = numpyro.sample("L", dist.LKJCholesky(size, 2.0))
    with observe(len(y)):
        numpyro.sample("y", dist.MultivariateNormal(mu, scale_tril=sigma[:, None] * L), obs=y)


def ordinal(X: Any, y: Any, num_levels: int) -> None:
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    cuts = numpyro.sample(
        "cuts",
        dist.TransformedDistribution(
            dist.Normal(0.0, 2.0).expand([num_levels - 1]).to_event(1),
            dist.transforms.OrderedTransform(),
        ),
    )
    with observe(len(y)):
        numpyro.sample("y", dist.OrderedLogistic(X @ beta, cuts), obs=y)


def proportions(y: Any, n: Any) -> None:
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    kappa = numpyro.sample("kappa", dist.LogNormal(2.0, 1.0))
    with observe(len(y)):
        numpyro.sample("y", dist.BetaBinomial(p * kappa, (1 - p) * kappa, n), obs=y)


@functools.cache
def diabetes() -> tuple[np.ndarray, ...]:
    X, y = datasets.load_diabetes(return_X_y=True)
    return standardised(X)[:, [2, 3, 8]], standardised(y)


@functools.cache
def engel() -> tuple[np.ndarray, ...]:
    table = tables.engel.load_pandas().data
    return tuple(standardised(np.log(table[name])) for name in ("income", "foodexp"))


@functools.cache
def cancer() -> tuple[np.ndarray, ...]:
    X, y = datasets.load_breast_cancer(return_X_y=True)
    return standardised(X)[:, [1, 4, 21]], y.astype(float)


@functools.cache
def visits() -> tuple[np.ndarray, ...]:
    table = tables.randhie.load_pandas().data.iloc[::15]
    X = standardised(table[["lncoins", "physlm", "disea"]])
    return X, table["mdvis"].to_numpy().astype(int)


@functools.cache
def grunfeld() -> tuple[np.ndarray, ...]:
    """By year, so that consecutive rows are periods."""
    table = tables.grunfeld.load_pandas().data.sort_values(["year", "firm"])
    firm = table["firm"].astype("category").cat.codes.to_numpy().astype(int)
    return firm, standardised(np.log(table["value"])), standardised(np.log(table["invest"]))


def schools() -> tuple[np.ndarray, ...]:
    """Rubin's eight, an effect and its standard error each."""
    effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return np.arange(8), effects, np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@functools.cache
def iris() -> tuple[np.ndarray, ...]:
    X, species = datasets.load_iris(return_X_y=True)
    return species, standardised(X)[:, 0]


@functools.cache
def petals() -> tuple[np.ndarray, ...]:
    return (standardised(datasets.load_iris().data[50:, 1:]),)


@functools.cache
def parties() -> tuple[np.ndarray, ...]:
    return (tables.anes96.load_pandas().data["PID"].to_numpy().astype(int),)


@functools.cache
def opinions() -> tuple[np.ndarray, ...]:
    table = tables.anes96.load_pandas().data
    return standardised(table[["age", "educ", "income"]]), table["PID"].to_numpy().astype(int)


@functools.cache
def counties() -> tuple[np.ndarray, ...]:
    table = tables.star98.load_pandas().data
    above, below = table["NABOVE"].to_numpy(), table["NBELOW"].to_numpy()
    return above.astype(int), (above + below).astype(int)


ZOO = {
    "linear, known noise": Example(linear, diabetes),
    "linear, unknown noise": Example(linear_scale, diabetes, shards=8),
    "linear, sorted by the response": Example(
        linear_scale, lambda: tuple(x[np.argsort(diabetes()[1])] for x in diabetes()), (), 4, True
    ),
    "robust": Example(robust, engel),
    "logistic": Example(logistic, cancer),
    "Poisson": Example(poisson, visits),
    "negative binomial": Example(negative_binomial, visits),
    "hierarchical, centred": Example(firms_centred, grunfeld, (11,), 4, True),
    "hierarchical, non-centred": Example(firms_non_centred, grunfeld, (11,), 4, True),
    "eight schools, centred": Example(schools_centred, schools, (8,), 8),
    "eight schools, non-centred": Example(schools_non_centred, schools, (8,), 8),
    "scales by group": Example(scales, iris, (3,)),
    "simplex": Example(shares, parties, (7,)),
    "correlation": Example(correlated, petals, (), 4),
    "ordinal": Example(ordinal, opinions, (7,)),
    "beta-binomial": Example(proportions, counties),
}
