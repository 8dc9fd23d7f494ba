"""Modes of products of mixtures, against brute force: grids, and scipy from many points."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import logsumexp

import bayesmerge as bm
from bayesmerge.mixtures import entrywise
from bayesmerge.mixtures.climb import Ridge, repeat
from bayesmerge.mixtures.warm_starts import modes_along


class Products:
    """Π_t (Σ_k π_tk N(μ_tk, Λ_tk⁻¹))^{α_t} N(0, 1/0.02)^γ, with a density of its own in NumPy."""

    def __init__(self, seed, d, T=2, K=5, spread=3.0, gamma=0.0):
        rng = np.random.default_rng(seed)
        self.means = spread * rng.normal(size=(T, K, d))
        root = rng.normal(size=(T, K, d, d + 2))
        self.precisions = root @ root.swapaxes(-1, -2) / d
        self.weights = rng.dirichlet(np.ones(K), size=T)
        self.alpha, self.gamma = (1 - gamma) * rng.dirichlet(np.ones(T)), gamma

    def log_density(self, x):
        """At x of shape (N, d)."""
        away = x[:, None, None] - self.means
        square = np.einsum("ntki,tkij,ntkj->ntk", away, self.precisions, away)
        height = np.log(self.weights) + 0.5 * np.linalg.slogdet(self.precisions / 2 / np.pi)[1]
        mixtures = logsumexp(height - 0.5 * square, axis=-1)
        return mixtures @ self.alpha - 0.01 * self.gamma * np.sum(x**2, axis=-1)

    def maxima(self):
        """All of them, the highest first: those of a grid, refined."""
        d = self.means.shape[-1]
        side = np.linspace(self.means.min() - 2, self.means.max() + 2, {1: 1001, 2: 101}[d])
        grid = np.stack(np.meshgrid(*d * [side], indexing="ij"), -1)
        heights = self.log_density(grid.reshape(-1, d)).reshape(grid.shape[:-1])
        padded = np.pad(heights, 1, constant_values=-np.inf)
        shifts = [s for s in itertools.product((-1, 0, 1), repeat=d) if any(s)]
        around = [
            padded[
                tuple(slice(1 + s, 1 + s + n) for s, n in zip(shift, heights.shape, strict=True))
            ]
            for shift in shifts
        ]
        peaks = grid[np.all([heights >= other for other in around], axis=0)]
        found = [
            scipy.optimize.minimize(
                lambda x: -self.log_density(x[None])[0], x, method="BFGS", options={"gtol": 1e-7}
            ).x
            for x in peaks
        ]
        found = sorted(found, key=lambda x: -self.log_density(x[None])[0])
        kept = []
        for x in found:
            if all(np.linalg.norm(x - y) > 1e-3 for y in kept):
                kept.append(x)
        return np.array(kept)

    def mixtures(self):
        make = jax.vmap(bm.FullGaussian.from_mean_precision)
        tasks = zip(self.weights, self.means, self.precisions, strict=True)
        return [bm.Mixture(w, make(jnp.asarray(m), jnp.asarray(p))) for w, m, p in tasks]

    def merged(self):
        d = self.means.shape[-1]
        prior = bm.FullGaussian.from_mean_precision(jnp.zeros(d), 0.02 * jnp.eye(d))
        return bm.merge(self.mixtures(), jnp.asarray(self.alpha), prior)


@eqx.filter_jit
def scaled_gradient(product, theta):
    """√(gᵀΛ⁻¹g/P), Λ of the minorizer, g by automatic differentiation of the density."""
    gradient = jax.grad(product.log_density)(theta)
    minorizer = product.minorizer(theta)
    return jnp.sqrt(minorizer.squared_length(gradient) / minorizer.layout.size)


@eqx.filter_jit
def densities(product, points):
    return jax.vmap(product.log_density)(points)


@eqx.filter_jit
def gradient_of(product, theta):
    return jax.grad(product.log_density)(theta)


@pytest.mark.parametrize("gamma", [0.0, 0.4, -0.3])
@pytest.mark.parametrize("d", [1, 2])
def test_the_maxima_are_those_of_brute_force(d, gamma):
    for seed in range(3):
        truth = Products(seed, d, gamma=gamma)
        product, expected = truth.merged(), truth.maxima()
        found = product.maxima()
        assert np.all(found.converged)
        for theta in found.params:
            assert scaled_gradient(product, theta) < 1e-9
        np.testing.assert_allclose(found.params[0], expected[0], atol=1e-5)
        np.testing.assert_allclose(found.log_density, densities(product, found.params), atol=1e-10)
        for theta in found.distinct().params:
            assert np.min(np.linalg.norm(expected - np.asarray(theta), axis=1)) < 1e-4
        assert len(found.distinct()) >= 0.7 * len(expected)
        np.testing.assert_allclose(product.mode(), found.params[0], atol=1e-8)


@pytest.mark.parametrize("accelerate", [False, True])
def test_no_step_goes_downhill(accelerate):
    for seed, gamma in [(0, 0.0), (1, 0.4), (2, -0.3)]:
        product = Products(seed, 2, gamma=gamma).merged()
        start = jnp.array([[0.3, -4.0], [5.0, 5.0]])
        ends = [
            product.maxima(start, max_steps=steps, accelerate=accelerate).log_density
            for steps in range(1, 40)
        ]
        heights = np.sort(np.array(ends), axis=1)
        assert np.diff(heights, axis=0).min() > -1e-12


def test_acceleration_reaches_the_same_modes_in_fewer_steps():
    plain_steps, steps = [], []
    for seed in range(10):
        product = Products(seed, 2).merged()
        plain, fast = product.maxima("means", accelerate=False), product.maxima("means")
        assert np.all(plain.converged)
        assert np.all(fast.converged)
        assert float(fast.log_density[0]) == pytest.approx(float(plain.log_density[0]), abs=1e-10)
        plain_steps += plain.steps.tolist()
        steps += fast.steps.tolist()
    assert np.mean(steps) < 0.7 * np.mean(plain_steps)


def two(distance, precision=1.0, weights=(0.5, 0.5)):
    make = jax.vmap(bm.IsotropicGaussian.from_mean_precision)
    means = jnp.array([[-distance / 2], [distance / 2]])
    return bm.Mixture(jnp.array(weights), make(means, jnp.full(2, precision)))


def test_a_nearly_flat_top_is_climbed_to_its_end():
    """At distance 2 two unit Gaussians become one mode: steps of expectation-maximisation shrink by
    1 − (1.999/2)² = 0.1 % only."""
    q = two(1.999)
    plain = q.maxima(jnp.array([[0.5]]), accelerate=False, max_steps=100_000)
    fast = q.maxima(jnp.array([[0.5]]))
    assert fast.converged.all()
    assert plain.converged.all()
    assert abs(float(fast.params[0, 0])) < 1e-6
    assert int(plain.steps[0]) > 1000 > 20 * int(fast.steps[0])


def test_a_search_cut_short_says_so():
    product = Products(0, 2).merged()
    with pytest.warns(bm.ConvergenceWarning, match="have not converged in 2 steps"):
        product.mode(max_steps=2)
    found = product.maxima(max_steps=2)
    assert not found.converged.all()
    assert np.all(found.gradient[~found.converged] > 1e-9)
    assert len(found.distinct()) == len(np.unique(found.log_density[found.converged].round(9)))


def test_many_weightings_are_one_product():
    truth = Products(3, 2, T=2)
    grid = bm.simplex_grid(2, 0.25)
    batch = bm.merge(truth.mixtures(), grid)
    modes, found = batch.mode(), batch.maxima()
    assert modes.shape == (len(grid), 2)
    assert found.best().log_density.shape == (len(grid),)
    for row, mode in zip(grid, modes, strict=True):
        single = bm.merge(truth.mixtures(), row)
        np.testing.assert_allclose(mode, single.mode(), atol=1e-8)
    theta = jnp.array([0.1, 0.2])
    expected = [bm.merge(truth.mixtures(), row).log_density(theta) for row in grid]
    np.testing.assert_allclose(batch.log_density(theta), expected, rtol=1e-12)
    traced = jax.jit(jax.vmap(lambda a: bm.merge(truth.mixtures(), a).mode()))(jnp.asarray(grid))
    np.testing.assert_allclose(traced, modes, atol=1e-8)


def test_what_is_stationary_but_no_maximum_is_left():
    """The middle of two equal components, and the middle of a mixture and its shifted copy."""
    pair = bm.Product([two(8.0)], jnp.ones(1))
    assert len(pair.maxima().distinct()) == 2
    assert abs(float(pair.mode("blend")[0])) == pytest.approx(4.0, abs=1e-5)
    make = jax.vmap(bm.IsotropicGaussian.from_mean_precision)
    copies = [
        bm.Mixture(
            [0.3, 0.4, 0.3], make(shift + jnp.array([[-1.0], [0.0], [1.0]]), jnp.full(3, 4.0))
        )
        for shift in (0.0, 4.0)
    ]
    product = bm.merge(copies, [0.5, 0.5])
    found = product.maxima().distinct().params
    grid = np.linspace(-3.0, 7.0, 20_001)
    heights = np.asarray(densities(product, grid[:, None]))
    inner = heights[1:-1]
    peaks = grid[1:-1][(inner > heights[:-2]) & (inner > heights[2:])]
    spacing = float(grid[1] - grid[0])
    np.testing.assert_allclose(np.sort(found[:, 0]), peaks, atol=spacing)


def test_starts_by_name_and_by_place():
    product = bm.Product([two(8.0, weights=(0.3, 0.7))], jnp.ones(1))
    assert len(product.maxima("blend")) == 1
    assert len(product.maxima("means")) == 2
    assert len(product.maxima("merged").distinct()) == 2
    low = product.maxima(jnp.array([[-5.0]]))
    assert float(low.params[0, 0]) == pytest.approx(-4.0, abs=1e-6)
    assert float(product.mode()[0]) == pytest.approx(4.0, abs=1e-6)
    with pytest.raises(ValueError, match="starts is 'everywhere'"):
        product.maxima("everywhere")


def tree_mixture(rng, K, structure, scale=1.0):
    """Diagonal or isotropic components over leaves of 7, 3 and 1 entries."""
    shapes = {"a": (7,), "b": (1, 3), "c": ()}

    def leaves(draw):
        return {name: jnp.asarray(draw((K, *shape))) for name, shape in shapes.items()}

    means = leaves(lambda s: scale * rng.normal(size=s))
    if structure == "isotropic":
        taus = jnp.asarray(rng.gamma(3.0, size=K))
        return bm.Mixture(
            rng.dirichlet(np.ones(K)),
            jax.vmap(bm.IsotropicGaussian.from_mean_precision)(means, taus),
        )
    taus = leaves(lambda s: rng.gamma(3.0, size=s))
    return bm.Mixture(
        rng.dirichlet(np.ones(K)), jax.vmap(bm.DiagonalGaussian.from_mean_precision)(means, taus)
    )


@pytest.mark.parametrize("block", [2, 5, 8192])
def test_blocks_of_parameters_are_the_whole(block, monkeypatch):
    monkeypatch.setattr(entrywise, "BLOCK", block)
    rng = np.random.default_rng(block)
    mixtures = [tree_mixture(rng, 3, "diagonal"), tree_mixture(rng, 2, "isotropic")]
    prior = tree_mixture(rng, 1, "diagonal").components
    prior = jax.tree.map(lambda x: x[0], prior)
    exponents = jnp.array([0.7, 0.9, -0.2])
    product = bm.Product([*mixtures, prior], exponents)
    wide = [bm.Mixture(q.weights, _widest(q.components)) for q in mixtures]
    full = bm.Product([*wide, _widest(prior)], exponents)
    r = jnp.asarray(np.concatenate([rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(2)), [1.0]]))

    @eqx.filter_jit
    def visited(p):
        ridge = Ridge.of(p.factors)
        climb = ridge.visit(exponents, r)
        length = ridge.distance(exponents, r, climb.updated)
        joint = ridge.log_joint_at(repeat(p.factors, exponents) * r)
        theta = p.on_ridge(r)
        ends = jnp.stack([climb.value, climb.gradient, length])
        return jnp.concatenate([joint, climb.updated, ends]), ridge.log_joint(theta), theta

    (blocks, joint, theta), (whole, _, _) = visited(product), visited(full)
    np.testing.assert_allclose(blocks, whole, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(blocks[: len(joint)], joint, rtol=1e-10, atol=1e-10)
    assert float(blocks[-1]) == pytest.approx(float(scaled_gradient(product, theta)), rel=1e-9)


def _widest(q):
    return q.structured("full")


def test_products_of_betas_and_gammas():
    betas = [
        bm.Mixture([0.4, 0.6], jax.vmap(bm.Beta.from_concentrations)(a, b))
        for a, b in [
            (jnp.array([4.0, 30.0]), jnp.array([20.0, 9.0])),
            (jnp.array([3.0, 40.0]), jnp.array([9.0, 4.0])),
        ]
    ]
    gammas = [
        bm.Mixture([0.5, 0.5], jax.vmap(bm.Gamma.from_shape_rate)(a, b))
        for a, b in [
            (jnp.array([3.0, 50.0]), jnp.array([6.0, 10.0])),
            (jnp.array([2.5, 40.0]), jnp.array([2.0, 10.0])),
        ]
    ]
    grid = np.linspace(0.0005, 0.9995, 4001)
    for mixtures, points in [(betas, grid), (gammas, 8 * grid)]:
        product = bm.Product(mixtures, jnp.array([0.6, 0.7]))
        heights = np.asarray(densities(product, points))
        inner = heights[1:-1]
        peaks = points[1:-1][(inner > heights[:-2]) & (inner > heights[2:])]
        found = product.maxima().distinct()
        np.testing.assert_allclose(np.sort(found.params), peaks, atol=float(points[1] - points[0]))
        assert float(found.log_density[0]) == pytest.approx(heights.max(), abs=1e-5)


def test_a_mode_on_the_simplex_is_stationary_along_it():
    dice = [
        bm.Mixture([0.5, 0.5], jax.vmap(bm.Dirichlet.from_concentrations)(jnp.array(a)))
        for a in ([[9.0, 2.0, 2.0], [2.0, 9.0, 3.0]], [[6.0, 3.0, 2.0], [2.0, 3.0, 12.0]])
    ]
    product = bm.Product(dice, jnp.array([0.8, 0.6]))
    found = product.maxima()
    assert found.converged.all()
    gradient = np.asarray(gradient_of(product, found.params[0]))
    np.testing.assert_allclose(gradient - gradient.mean(), 0, atol=1e-7)
    rng = np.random.default_rng(0)
    elsewhere = densities(product, jnp.asarray(rng.dirichlet(np.ones(3), size=4000)))
    assert float(found.log_density[0]) >= float(elsewhere.max())


def test_far_apart_and_many_dimensions_are_ordinary():
    """Sixty standard deviations apart in fifty dimensions; a million in float32."""
    make = jax.vmap(bm.IsotropicGaussian.from_mean_precision)
    far = jnp.stack([jnp.zeros(50), jnp.full(50, 60.0)])
    product = bm.Mixture([0.5, 0.5], make(far, jnp.ones(2))) ** 0.5 * bm.Mixture(
        [0.5, 0.5], make(far + 1.0, jnp.ones(2))
    )
    found = product.maxima()
    assert found.converged.all()
    assert len(found.distinct()) >= 2
    np.testing.assert_allclose(found.params[0] % 60, jnp.full(50, 2 / 3), atol=1e-9)
    key = jax.random.key(0)
    with jax.enable_x64(False):
        noise = 2e-3 * jax.random.normal(key, (2, 3, 1_000_000), jnp.float32)
        taus = jnp.ones((3, 1_000_000), jnp.float32)
        make = jax.vmap(bm.DiagonalGaussian.from_mean_precision)
        q = [bm.Mixture([0.2, 0.3, 0.5], make(100 + x, taus)) for x in noise]
        found = bm.merge(q, [0.5, 0.5]).maxima("means")
        assert found.converged.all()
        assert np.all(np.isfinite(found.log_density))
        best = found.best().params
        gradient = np.asarray(gradient_of(bm.merge(q, [0.5, 0.5]), best))
    assert float(np.sqrt(np.mean(gradient**2))) < 1e-4


@eqx.filter_jit
def _heights(batch, responsibilities):
    at = batch.on_ridge(responsibilities)
    return jax.vmap(lambda a, x: batch.with_exponents(a).log_density(x))(batch.exponents, at)


def test_warm_starts_find_nearly_what_searches_find(monkeypatch):
    """docs/results.md has rates of more cases: one in a hundred is missed."""
    missed, grid = [], bm.simplex_grid(3, 0.1)
    for seed in range(3):
        batch = bm.merge(Products(seed, 2, T=3, K=3).mixtures(), grid)
        searched = modes_along(batch)
        monkeypatch.setattr("bayesmerge.mixtures.warm_starts.SMALL", 0)
        warm = modes_along(batch)
        monkeypatch.undo()
        climbed = (jnp.asarray(found.responsibilities) for found in (searched, warm))
        high, low = (np.asarray(_heights(batch, r)) for r in climbed)
        gap = high - low
        missed.append(np.asarray(gap > 1e-9))
        assert warm.gradient.max() < 1e-9
        assert gap.max() < 0.1
    assert np.mean(missed) < 0.02


def test_products_without_a_maximum_are_refused():
    wide = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(1), 100.0)
    with pytest.raises(ValueError, match=r"subtracts? more than.*\[1\.0, -1\.0\]"):
        (two(4.0) / wide).mode()
    grid = np.array([[0.5, 0.5], [1.5, 1.5]])
    with pytest.raises(ValueError, match="subtract more than the posteriors have"):
        bm.preview([two(4.0), two(3.0)], grid, lambda x: x[0], wide, progress=False)
    with pytest.raises(ValueError, match="the only mode is"):
        bm.Product([wide, wide], jnp.ones(2)).maxima()
    with pytest.raises(TypeError, match="a factor is a float"):
        bm.Product([two(1.0), 2.0], jnp.ones(2))


def test_components_without_density_or_mode_do_not_stop_a_search():
    dead = two(4.0, weights=(0.0, 1.0)) * two(3.0)
    alive = bm.Product([bm.IsotropicGaussian.from_mean_precision(jnp.array([2.0]), 1.0), two(3.0)],
                       jnp.ones(2))  # fmt: skip
    found = dead.maxima()
    assert found.converged.all()
    np.testing.assert_allclose(dead.mode(), alive.mode(), atol=1e-9)
    np.testing.assert_allclose(dead.expand().mean(), alive.expand().mean(), atol=1e-12)
    beta = bm.Beta.from_concentrations
    product = bm.Mixture([0.5, 0.5], [beta(0.5, 0.5), beta(10.0, 10.0)]) * beta(5.0, 3.0)
    grid = np.linspace(0.001, 0.999, 2001)
    heights = densities(product, grid)
    assert float(product.mode()) == pytest.approx(float(grid[np.argmax(heights)]), abs=5e-4)
    with pytest.raises(ValueError, match="every climb met a density that is not finite"):
        (bm.Mixture([1.0], [beta(0.5, 0.5)]) * beta(1.0, 1.0)).mode()


def test_bad_starts_and_limits_are_named():
    q = two(4.0)
    for starts in (jnp.zeros(1), jnp.array(0.3), jnp.zeros((2, 3)), jnp.zeros((0, 1))):
        with pytest.raises(ValueError, match="starts have leaves of shapes"):
            q.maxima(starts)
    with pytest.raises(ValueError, match="tolerance is nan"):
        q.maxima(tolerance=float("nan"))
    with pytest.raises(ValueError, match="max_steps is 0"):
        q.maxima(max_steps=0)
    beta = bm.Beta.from_concentrations(2.0, 2.0)
    with pytest.raises(TypeError, match="not members of one exponential family"):
        bm.Mixture([1.0], [bm.IsotropicGaussian.from_mean_precision(jnp.array(0.5), 1.0)]) * beta
