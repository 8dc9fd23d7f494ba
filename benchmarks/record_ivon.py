"""Sequences of steps of `ivon.IVON` (`pip install ivon-opt torch`), for `tests/recorded/ivon.json`.

A mean loss that is not quadratic, of two float32 tensors "W" (2, 3) and "b" (3,), all flattened.
Each step has its learning rate, for every Monte Carlo sample the perturbation σε and the gradient
there, and what is known after the step: parameters, Hessian estimate and momentum.
"""

import argparse
import inspect
import json
import math
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ivon import IVON
from torch import Tensor
from torch.overrides import TorchFunctionMode

PATH = Path(__file__).parents[1] / "tests" / "recorded" / "ivon.json"
STEPS = 12

Options = dict[str, Any]
Values = dict[str, list[float]]

RUNS: dict[str, Options] = {
    "defaults": {"ess": 1000.0},
    "small_ess": {"ess": 50.0, "weight_decay": 1e-2, "hess_init": 0.5},
    "moving_hessian": {"ess": 50.0, "beta2": 0.9, "weight_decay": 1e-2, "hess_init": 0.5},
    "three_samples": {"ess": 50.0, "beta2": 0.9, "weight_decay": 1e-2, "mc_samples": 3},
    "squared_gradients": {"ess": 50.0, "beta2": 0.95, "hess_approx": "gradsq", "mc_samples": 2},
    "clipped": {"ess": 50.0, "beta2": 0.9, "weight_decay": 1e-2, "clip_radius": 0.3},
    "no_rescaling": {"ess": 50.0, "beta2": 0.95, "hess_init": 0.3, "rescale_lr": False},
    "no_debiasing": {"ess": 50.0, "beta1": 0.8, "beta2": 0.95, "debias": False},
    "schedule": {"ess": 50.0, "beta2": 0.9, "weight_decay": 1e-2, "hess_init": 0.5},
    "strong_decay": {"ess": 20.0, "beta2": 0.7, "weight_decay": 0.5, "hess_init": 0.1},
}


class Perturbations(TorchFunctionMode):
    """Keeps the first result computed from each `torch.randn`: the perturbation σε."""

    draw: Tensor | None = None
    last: Tensor

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.randn:
            self.draw = result
        elif self.draw is not None and args and args[0] is self.draw:
            self.draw, self.last = None, result
        return result


def problem() -> tuple[list[Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """W and b, and the mean cross-entropy of 3 yes-or-no outputs with logits 3 tanh(xW + b)."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 2), torch.randint(2, (20, 3)).float()
    initial = [0.5 * torch.randn(2, 3), 0.5 * torch.randn(3)]
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits

    def loss(W: Tensor, b: Tensor) -> Tensor:
        return cross_entropy(3 * torch.tanh(x @ W + b), y, reduction="sum") / len(x)

    return [p.requires_grad_() for p in initial], loss


def learning_rate(name: str, step: int) -> float:
    return 0.2 / (1 + step) ** 0.5 if name == "schedule" else 0.1


def split(flat: Tensor) -> Values:
    W, b = flat.detach().split([6, 3])
    return {"W": W.tolist(), "b": b.tolist()}


def join(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def record(name: str, options: Options) -> dict[str, Any]:
    params, loss = problem()
    optimiser = IVON(params, lr=learning_rate(name, 0), **options)
    group = optimiser.param_groups[0]
    initial = join(params)
    steps = []
    for step in range(STEPS):
        group["lr"] = learning_rate(name, step)
        mean, noise, gradient = join(params), [], []
        for _ in range(options.get("mc_samples", 1)):
            with Perturbations() as perturbations, optimiser.sampled_params(train=True):
                noise.append(split(perturbations.last))
                assert torch.equal(join(params), mean + perturbations.last)
                optimiser.zero_grad()
                loss(*params).backward()
                gradient.append(split(join([p.grad for p in params])))
        optimiser.step()
        after = {
            "parameters": join(params),
            "hessian": group["hess"],
            "momentum": group["momentum"],
        }
        steps.append(
            {"lr": group["lr"], "noise": noise, "gradient": gradient}
            | {key: split(value) for key, value in after.items()}
        )
    return {"options": known(options), "initial": split(initial), "steps": steps}


def known(options: Options) -> Options:
    """All options but lr, with defaults; null is infinity."""
    bound = inspect.signature(IVON).bind(None, lr=None, **options)
    bound.apply_defaults()
    kept = {key: v for key, v in bound.arguments.items() if key not in ("params", "lr", "sync")}
    return {key: None if v == math.inf else v for key, v in kept.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", type=Path, default=PATH)
    path = parser.parse_args().path
    source = f"ivon-opt {version('ivon-opt')}, torch {torch.__version__}"
    runs = {name: record(name, options) for name, options in RUNS.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"source": source, "runs": runs}, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
