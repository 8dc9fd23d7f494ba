"""NumPyro models as people port them from Stan: one dictionary of lists and integers, `np.asarray`,
`float`, `range`, `if`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.contrib.control_flow import scan

RNG = np.random.default_rng(0)


@dataclasses.dataclass
class Options:
    """An argument that is no pytree."""

    scale: float
    x: np.ndarray


def schools_centred(data: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("J", data["J"]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, np.asarray(data["sigma"])), obs=np.array(data["y"]))


def schools_non_centred(J: int, y: Any, sigma: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    eta = numpyro.sample("eta", dist.Normal(0, 1).expand([J]))
    theta = numpyro.deterministic("theta", mu + tau * eta)
    numpyro.sample("y", dist.Normal(theta, jnp.array(sigma)), obs=jnp.array(y))


def rats(data: Any) -> None:
    x = np.asarray(data["x"]) - float(data["xbar"])
    mu = numpyro.sample("mu", dist.Normal(jnp.array([240.0, 6.0]), 20).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(10).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10))
    for n in range(data["N"]):
        a = numpyro.sample(f"alpha_{n}", dist.Normal(mu[0], sd[0]))
        b = numpyro.sample(f"beta_{n}", dist.Normal(mu[1], sd[1]))
        numpyro.sample(f"y_{n}", dist.Normal(a + b * x, sigma), obs=np.asarray(data["y"][n]))


def radon(data: Any) -> None:
    county = np.asarray(data["county"]) - 1
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    with numpyro.plate("counties", data["N_county"]):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    loc = alpha[county] + slope * jnp.asarray(data["floor"])
    with numpyro.plate("N", data["N"]):
        numpyro.sample("y", dist.Normal(loc, 0.8), obs=jnp.asarray(data["y"]))


def logistic(data: Any) -> None:
    X = np.asarray(data["X"])
    bias = numpyro.sample("bias", dist.Normal(0, 2)) if data["intercept"] else 0.0
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=bias + X @ beta), obs=np.array(data["y"]))


def poisson(data: Any, link: Any = jnp.exp, prior: Any = None) -> None:
    prior = dist.Normal(0, 1) if prior is None else prior
    b = [numpyro.sample(f"b{k}", prior) for k in range(len(data["x"]))]
    eta = sum(x * np.asarray(v) for x, v in zip(b, data["x"], strict=True))
    rate = np.asarray(data["exposure"]) * link(eta)
    numpyro.sample("y", dist.Poisson(rate), obs=np.asarray(data["y"]))


def mixture(data: Any) -> None:
    K = int(data["K"])
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(K)))
    mu = numpyro.sample("mu", dist.Normal(jnp.linspace(-3, 3, K), 1).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1).expand([K]).to_event(1))
    y = jnp.asarray(data["y"])[:, None]
    log_p = jnp.log(p)[None, :] + dist.Normal(mu, sigma).log_prob(y)
    numpyro.factor("log_p", jax.nn.logsumexp(log_p, axis=1).sum())


def autoregressive(data: Any) -> None:
    alpha = numpyro.sample("alpha", dist.Normal(0, 1))
    beta = numpyro.sample("beta", dist.Normal(0, 0.5).expand([data["K"]]))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(1))
    y = data["y"]
    for t in range(data["K"], data["T"]):
        mu = alpha
        for k in range(1, data["K"] + 1):
            mu = mu + beta[k - 1] * y[t - k]
        numpyro.sample(f"y{t}", dist.Normal(mu, sigma), obs=y[t])


def changepoint(counts: Any, year: int, use_change: bool) -> None:
    early = numpyro.sample("early", dist.Exponential(1.0))
    late = numpyro.sample("late", dist.Exponential(1.0)) if use_change else early
    for t, count in enumerate(counts):
        numpyro.sample(f"D{t}", dist.Poisson(early if t < year else late), obs=count)


def seeds(data: Any) -> None:
    r, n = np.array(data["r"]), np.array(data["n"])
    x1, x2 = np.array(data["x1"]), np.array(data["x2"])
    a = numpyro.sample("a", dist.Normal(0, 2).expand([4]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    b = numpyro.sample("b", dist.Normal(0, tau).expand([data["I"]]).to_event(1))
    logits = a[0] + a[1] * x1 + a[2] * x2 + a[3] * x1 * x2 + b
    numpyro.sample("r", dist.Binomial(n, logits=logits), obs=r)


def two_parameter_irt(data: Any) -> None:
    jj, kk = (np.asarray(data["index"][k]) - 1 for k in ("jj", "kk"))
    with numpyro.plate("persons", data["J"]):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
    with numpyro.plate("items", data["K"]):
        a = numpyro.sample("a", dist.LogNormal(0, 0.5))
        b = numpyro.sample("b", dist.Normal(0, 1))
    logits = a[kk] * (theta[jj] - b[kk])
    numpyro.sample("y", dist.Bernoulli(logits=logits), obs=np.asarray(data["y"]))


def negative_binomial(frame: Any) -> None:
    alpha = numpyro.sample("alpha", dist.Normal(0, 2))
    beta = numpyro.sample("beta", dist.Normal(0, 1))
    phi = numpyro.sample("phi", dist.HalfNormal(5))
    mean = jnp.exp(alpha + beta * frame["x"].values)
    with numpyro.plate("rows", len(frame)):
        numpyro.sample("y", dist.NegativeBinomial2(mean, phi), obs=frame["y"].to_numpy())


def ordinal(data: Any) -> None:
    K = len(np.unique(np.asarray(data["y"])))
    prior = dist.TransformedDistribution(
        dist.Normal(0, 2).expand([K - 1]).to_event(1), dist.transforms.OrderedTransform()
    )
    cuts = numpyro.sample("c", prior)
    beta = numpyro.sample("beta", dist.Normal(0, 1))
    eta = beta * np.asarray(data["x"])
    numpyro.sample("y", dist.OrderedLogistic(eta, cuts), obs=np.asarray(data["y"]) - 1)


def local_level(data: Any) -> None:
    """The likelihood by Kalman's filter."""
    q = numpyro.sample("q", dist.HalfNormal(1))
    r = numpyro.sample("r", dist.HalfNormal(float(data["scale"])))

    def step(state: Any, y: Any) -> Any:
        mean, variance = state[0], state[1] + q**2
        total = variance + r**2
        log_p = dist.Normal(mean, jnp.sqrt(total)).log_prob(y)
        gain = variance / total
        return (mean + gain * (y - mean), (1 - gain) * variance), log_p

    _, log_p = jax.lax.scan(step, (jnp.zeros(()), jnp.ones(())), jnp.array(data["y"]))
    numpyro.factor("y", log_p.sum())


def random_walk(data: Any) -> None:
    def step(state: Any, y: Any) -> Any:
        state = numpyro.sample("state", dist.Normal(state, data["sd"]))
        numpyro.sample("y", dist.Normal(state, 1.0), obs=y)
        return state, None

    scan(step, 0.0, jnp.array(data["y"]))


def dyes(data: Any) -> None:
    theta = numpyro.sample("theta", dist.Normal(1500, 100))
    between = numpyro.sample("between", dist.HalfCauchy(50))
    within = numpyro.sample("within", dist.HalfCauchy(50))
    for i, batch in enumerate(data["y"]):
        mu = numpyro.sample(f"mu_{i}", dist.Normal(theta, between))
        numpyro.sample(f"y_{i}", dist.Normal(mu, within), obs=jnp.array(batch))


def pumps(data: Any) -> None:
    alpha = numpyro.sample("alpha", dist.Exponential(1.0))
    beta = numpyro.sample("beta", dist.Gamma(0.1 if data.get("vague") else 1.0, 1.0))
    with numpyro.plate("pumps", len(data["t"])):
        theta = numpyro.sample("theta", dist.Gamma(alpha, beta))
        rate = theta * jnp.array(data["t"])
        numpyro.sample("x", dist.Poisson(rate), obs=jnp.array(data["x"]))


def beta_binomial(hits: Any, bats: Any, *, K: int, note: str | None = None) -> None:
    phi = numpyro.sample("phi", dist.Uniform(0, 1))
    kappa = numpyro.sample("kappa", dist.Pareto(1.0, 1.5))
    concentrations = phi * kappa, (1 - phi) * kappa
    with numpyro.plate("players", K):
        likelihood = dist.BetaBinomial(*concentrations, total_count=np.asarray(bats))
        numpyro.sample("y", likelihood, obs=np.asarray(hits))


def any_family(data: Any, family: str, options: Any) -> None:
    x = options.x if isinstance(options.x, np.ndarray) else None
    beta = numpyro.sample("beta", dist.Normal(0, float(options.scale)))
    eta = beta * x
    if family == "poisson":
        numpyro.sample("y", dist.Poisson(jnp.exp(eta)), obs=data)
    else:
        numpyro.sample("y", dist.Normal(eta, 1.0), obs=data)


def standardised(data: Any) -> None:
    """Changes its own data: NumPyro gives it the same dictionary every time."""
    y = np.asarray(data.pop("y") if "y" in data else data["done"])
    data["done"] = y
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("obs", dist.Normal(mu, 1.0), obs=(y - y.mean()) / y.std())


@dataclasses.dataclass(frozen=True)
class Port:
    """A model and its arguments, as a function, since a model may change them."""

    model: Callable[..., Any]
    make: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]


def port(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Port:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(dict(x) if isinstance(x, dict) else x for x in args), kwargs

    return Port(model, make)


SCHOOLS = {"J": 8, "y": [28, 8, -3, 7, -1, 1, 18, 12], "sigma": [15, 10, 16, 11, 9, 11, 10, 18]}
COUNTS = [4, 5, 4, 1, 0, 4, 3, 1, 0, 0]
WALK = np.cumsum(RNG.normal(size=8)).tolist()
FRAME = pd.DataFrame({"x": RNG.normal(size=9), "y": RNG.poisson(3, size=9)})
PORTS = {
    "eight schools, centred": port(schools_centred, SCHOOLS),
    "eight schools, arrays": port(
        schools_centred, {k: np.array(v) if k != "J" else v for k, v in SCHOOLS.items()}
    ),
    "eight schools, non-centred": port(schools_non_centred, **SCHOOLS),
    "rats": port(
        rats,
        {"N": 2, "x": [8, 15, 22], "xbar": 15, "y": [[151, 199, 246], [145, 199, 249]]},
    ),
    "radon": port(
        radon,
        {
            "N": 6,
            "N_county": np.int64(3),
            "county": [1, 1, 2, 3, 3, 3],
            "floor": np.array([0, 1, 0, 0, 1, 0]),
            "y": np.array([0.8, 0.8, 1.1, 0.1, 1.2, 1.0]),
        },
    ),
    "logistic": port(
        logistic, {"X": [[0.1, 1.0], [2.0, -1.0], [0.3, 0.4]], "y": [0, 1, 1], "intercept": True}
    ),
    "Poisson": port(
        poisson, {"x": ([1.0, 1, 1], [0, 1, 2]), "exposure": [10, 20, 30], "y": [3, 9, 20]}
    ),
    "mixture": port(mixture, {"K": "2", "y": np.array([-2.0, -1.5, 2.2, 1.9])}),
    "AR(2)": port(autoregressive, {"K": 2, "T": 8, "y": WALK}),
    "change point": port(changepoint, COUNTS, 5, use_change=True),
    "seeds": port(
        seeds,
        {
            "I": 4,
            "r": [10, 23, 23, 26],
            "n": [39, 62, 81, 51],
            "x1": [0, 0, 1, 1],
            "x2": [0, 1] * 2,
        },
    ),
    "IRT": port(
        two_parameter_irt,
        {
            "J": 3,
            "K": 2,
            "index": {"jj": [1, 1, 2, 2, 3, 3], "kk": [1, 2] * 3},
            "y": [1, 0, 1, 1, 0, 0],
        },
    ),
    "negative binomial": port(negative_binomial, FRAME),
    "ordinal": port(ordinal, {"y": [1, 2, 3, 3, 2, 1], "x": [0.1, 0.5, 2.0, 1.4, 0.9, -0.4]}),
    "Kalman": port(local_level, {"scale": 2, "y": WALK}),
    "scan": port(random_walk, {"sd": 0.5, "y": WALK}),
    "dyes": port(dyes, {"y": [[1545.0, 1440, 1440], [1540, 1555, 1490], [1595, 1550, 1605]]}),
    "pumps": port(pumps, {"t": [94.3, 15.7, 62.9], "x": [5, 1, 5], "vague": None}),
    "beta-binomial": port(
        beta_binomial, np.array([18, 17, 16]), np.array([45, 45, 45]), K=3, note=None
    ),
    "strings": port(
        any_family, np.array([1, 2, 0]), "poisson", Options(2.0, np.array([0.5, 1.0, -1.0]))
    ),
    "changes its data": port(standardised, {"y": [1.0, 2.0, 5.0]}),
}
