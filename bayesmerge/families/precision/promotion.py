"""Which structure holds the sum of two precisions: one table."""

from typing import Any, Literal, TypeAlias, get_args

from bayesmerge.families.precision.abstract import AbstractStructure
from bayesmerge.families.precision.blocks import Blocks
from bayesmerge.families.precision.dense import Full
from bayesmerge.families.precision.diagonal import Diagonal
from bayesmerge.families.precision.scalar import Isotropic

Named: TypeAlias = Literal["isotropic", "diagonal", "full"]
Structure: TypeAlias = Named | AbstractStructure

BY_NAME: dict[str, AbstractStructure] = {s.name: s for s in (Isotropic(), Diagonal(), Full())}

SMALLEST: dict[frozenset[type], type[AbstractStructure]] = {
    frozenset({Isotropic, Diagonal}): Diagonal,
    frozenset({Isotropic, Blocks}): Blocks,
    frozenset({Isotropic, Full}): Full,
    frozenset({Diagonal, Blocks}): Blocks,
    frozenset({Diagonal, Full}): Full,
    frozenset({Blocks, Full}): Full,
}


def join(one: Any, other: Any) -> Any:
    """The smallest structure that holds every Λ + Λ'."""
    if type(one) is type(other):
        return one.joined(other)
    found = SMALLEST[frozenset({type(one), type(other)})]
    return next((s for s in (one, other) if type(s) is found), None) or found()


def holds(structure: AbstractStructure, other: AbstractStructure) -> bool:
    """Whether every precision of the other structure is one of this."""
    return bool(join(structure, other) == structure)


def as_structure(structure: Any) -> AbstractStructure:
    """A structure from its name, or from itself.

    **Raises** `ValueError` for what is neither.
    """
    if isinstance(structure, AbstractStructure):
        return structure
    if isinstance(structure, str) and structure in BY_NAME:
        return BY_NAME[structure]
    raise ValueError(
        f"structure is {structure!r}, and it must be one of {get_args(Named)}, or an object such "
        "as `Blocks()`."
    )
