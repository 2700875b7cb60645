"""BackboneCheck: one thing that must hold of a backbone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class BackboneCheck(Generic[Candidate]):
    """One check of one kind of backbone.

    Attributes:
        title: what must hold.
        run: the check: returns what it found in a few words, or raises BrokenContractError.
        essential: nothing that follows can be checked where it fails.
        needs: titles of checks without which it says nothing new.
    """

    title: str
    run: Callable[[Candidate], str]
    essential: bool = False
    needs: tuple[str, ...] = ()
