"""Unions of sites: who shares with whom in a scaling study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import InputError


@dataclass(frozen=True)
class Union:
    """Sites that share with each other, under one name."""

    name: str
    sites: tuple[str, ...]


@dataclass(frozen=True)
class ScalingConfig:
    """How many sites contribute: unions beside that of all sites; ``[2, 4]`` or ``[[A, C], [B, D]]``."""

    unions: tuple[int | tuple[str, ...], ...] = ()

    def named_unions(self, sites: Sequence[str]) -> tuple[Union, ...]:
        """The unions without that of all sites: the first n are called by their number, others ``[A+C]``.

        Raises:
            InputError: more sites than there are, an unknown site, or a union named as a site is.
        """
        found: dict[tuple[str, ...], Union] = {}
        for union in self.unions:
            members = tuple(sites[:union]) if isinstance(union, int) else union
            known = 0 < union <= len(sites) if isinstance(union, int) else members and set(members) <= set(sites)
            name = str(union) if isinstance(union, int) else f"[{'+'.join(members)}]"
            if not known or len(set(members)) < len(members) or name in sites:
                raise InputError(
                    f"union {union!r} of the sites {list(sites)}",
                    where="scaling.unions",
                    fix=f"give numbers from 1 to {len(sites)}, or lists of these sites",
                )
            if set(members) != set(sites):
                found.setdefault(members, Union(name, members))
        return tuple(found.values())
