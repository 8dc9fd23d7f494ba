"""Training steps in PyTorch: AdamW, and IVON of the package ivon-opt.

One fixed random batch of 128 images of MNIST's shape, random labels, float32; mean cross-entropy of
784-32-32-10 and 784-1024-1024-10 relu networks and of a convolutional one (20,490 parameters).
"""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

from timing import race, show

if TYPE_CHECKING:
    from torch import nn

Optimiser = Literal["adamw", "ivon"]
Model = Literal["mlp32", "mlp1024", "conv"]

THREADS = 2
BATCH = 128
EXAMPLES = 60_000


def network(model: Model) -> "nn.Sequential":
    from torch import nn

    if model == "conv":
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(7 * 7 * 32, 10),
        )
    width = {"mlp32": 32, "mlp1024": 1024}[model]
    return nn.Sequential(
        nn.Linear(784, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


def contestant(optimiser: Optimiser, model: Model) -> Callable[[], None]:
    """One training step; IVON's has one Monte Carlo sample."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    net = network(model)
    x = torch.rand(BATCH, 1, 28, 28) if model == "conv" else torch.rand(BATCH, 784)
    y = torch.randint(10, (BATCH,))

    def backward() -> None:
        torch.nn.functional.cross_entropy(net(x), y).backward()

    if optimiser == "adamw":
        adamw = torch.optim.AdamW(net.parameters(), lr=1e-3)

        def step() -> None:
            adamw.zero_grad()
            backward()
            adamw.step()

        return step

    from ivon import IVON

    ivon = IVON(net.parameters(), lr=0.1, ess=EXAMPLES)

    def sampled_step() -> None:
        ivon.zero_grad()
        with ivon.sampled_params(train=True):
            backward()
        ivon.step()

    return sampled_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    repeats = parser.parse_args().repeats
    optimisers = get_args(Optimiser)
    for model in get_args(Model):
        timings = race({name: contestant(name, model) for name in optimisers}, repeats)
        show(f"one step, {model}", timings, reference="adamw")


if __name__ == "__main__":
    main()
