"""How much metrics vary over draws of a merged posterior."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from bayesmerge.families.trees import keys_like
from bayesmerge.keys import as_key
from bayesmerge.previews.modes import Start


class Spread(eqx.Module):
    r"""The standard deviation of each metric over draws of the merged posterior,
    $\theta_s = \hat\theta + \Lambda^{-1/2}\varepsilon_s$, $\varepsilon_s \sim \mathcal N(0, I)$:
    how unsure the picture is.

    The mode is the refined one where modes are refined. All weightings share the same ε, so that
    neighbours differ by their weights and not by luck. It is for Gaussians and mixtures; the draws
    of a product of mixtures are those of the Gaussian that touches it at its highest mode, narrower
    than all of it.

    - `num_draws`: S ≥ 2, of every merged posterior.
    - `key`: a random key, such as `jax.random.key(0)`.

    The preview's `details` then are the standard deviation of every metric (`spread of <name>`)
    and of their mean (`spread`).

    **Raises** `ValueError` for fewer than two draws, `TypeError` for a key that is none.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> q = [bm.IsotropicGaussian.from_mean_precision(jnp.array(x), 4.0) for x in (0.0, 1.0)]
    >>> options = {"spread": bm.previews.Spread(1000, jax.random.key(0)), "progress": False}
    >>> bm.preview(q, [[0.5, 0.5]], lambda x: x, **options).details["spread"].round(1)
    array([0.5])

    ```
    """

    num_draws: int
    key: PRNGKeyArray = eqx.field(converter=as_key)

    def __check_init__(self) -> None:
        if self.num_draws < 2 or self.num_draws != int(self.num_draws):
            raise ValueError(
                f"num_draws is {self.num_draws}, and a standard deviation needs two draws or more. "
                "For none leave out `spread`."
            )

    def draws(self, theta: PyTree, start: Start) -> PyTree:
        """S draws around θ in a leading axis."""
        colour: Any = start.colour

        def draw(key: PRNGKeyArray) -> PyTree:
            noise = jax.tree.map(
                lambda k, x: jax.random.normal(k, x.shape, x.dtype), keys_like(key, theta), theta
            )
            return jax.tree.map(jnp.add, theta, colour(noise))

        return jax.vmap(draw)(jax.random.split(self.key, self.num_draws))
