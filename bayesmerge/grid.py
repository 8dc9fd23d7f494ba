"""Sets of task weightings α."""

import itertools

import numpy as np
from jaxtyping import Float


def simplex_grid(num_tasks: int, spacing: float) -> Float[np.ndarray, "A T"]:
    r"""All weightings $\alpha_t \in \{0, s, 2s, \ldots, 1\}$ with $\sum_t \alpha_t = 1$.

    - `num_tasks`: T ≥ 1.
    - `spacing`: s; 1/s must be a whole number n. There are C(n + T − 1, T − 1) weightings.

    **Returns** float64, shape (A, T), corners and edges included, in lexicographic order.

    **Raises** `ValueError` for T < 1 or a spacing that does not divide 1.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> bm.simplex_grid(2, 0.5)
    array([[0. , 1. ],
           [0.5, 0.5],
           [1. , 0. ]])
    >>> len(bm.simplex_grid(3, 0.05))
    231

    ```

    Source: the weightings of FP Figs. 8 and 9.
    """
    if not isinstance(num_tasks, (int, np.integer)) or num_tasks < 1:
        raise ValueError(f"num_tasks is {num_tasks!r}, and it is an integer: at least one task.")
    steps = round(1 / spacing) if 0 < spacing <= 1 else 0
    if steps < 1 or abs(steps * spacing - 1) > 1e-6:
        raise ValueError(
            f"spacing is {spacing}, and it must divide 1 into a whole number of steps, as 0.05 "
            "divides it into 20."
        )
    slots = steps + num_tasks - 1
    rows = [
        np.diff((-1, *bars, slots)) - 1
        for bars in itertools.combinations(range(slots), num_tasks - 1)
    ]
    return np.array(rows, float) / steps
