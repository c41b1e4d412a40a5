"""Which snapshot becomes the generator, and the weights of those that still may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.checkpoints import load_tensors, save_tensors
from training.monitor import FRECHET_TRAIN, KERNEL_HELDOUT, KERNEL_HELDOUT_ERROR, NEAREST_TRAIN

if TYPE_CHECKING:
    from torch import Tensor

NO_COPYING = 1.0  # distance to the training images, where 1 is that of unseen patients
CANDIDATE = "candidate_{step}.safetensors"


@dataclass(frozen=True)
class Candidate:
    """A snapshot whose averaged weights are kept: its length, and the scores that the monitor gave it."""

    step: int
    kimg: float
    scores: dict[str, float] = field(default_factory=dict)

    def path(self, out: Path) -> Path:
        """Its file."""
        return out / CANDIDATE.format(step=self.step)


def still_eligible(candidates: Sequence[Candidate], rule: str) -> list[Candidate]:
    """Those that may still be chosen: one that is left out now cannot be chosen later, whatever scores follow.

    heldout: within one standard error of the best so far, and no other is both closer and copies less.
    fid: the best so far.
    """
    if rule == "fid":
        scored = [one for one in candidates if FRECHET_TRAIN in one.scores]
        return [min(scored, key=lambda one: (one.scores[FRECHET_TRAIN], one.step))] if scored else []
    if rule != "heldout":
        return []
    scored = [one for one in candidates if KERNEL_HELDOUT in one.scores and NEAREST_TRAIN in one.scores]
    if not scored:
        return []
    best = min(scored, key=lambda one: (one.scores[KERNEL_HELDOUT], one.step))
    largest = best.scores[KERNEL_HELDOUT] + best.scores.get(KERNEL_HELDOUT_ERROR, 0.0)
    close = [one for one in scored if one.scores[KERNEL_HELDOUT] <= largest]
    return [one for one in close if not any(_beats(other, one) for other in close)]


def _preference(one: Candidate) -> tuple[float, float, int]:
    """Least copying first. Farther from the training images than unseen patients are is no less copying, but less
    real: there the closer to held-out patients, then the earlier wins.
    """
    return min(one.scores[NEAREST_TRAIN], NO_COPYING), -one.scores[KERNEL_HELDOUT], -one.step


def _beats(other: Candidate, one: Candidate) -> bool:
    """Whether ``other`` is preferred to ``one`` whenever both are close enough to the best."""
    return other.scores[KERNEL_HELDOUT] <= one.scores[KERNEL_HELDOUT] and _preference(other) > _preference(one)


def choose(candidates: Sequence[Candidate], rule: str) -> tuple[Candidate | None, str]:
    """The snapshot to keep and why; None: the last one.

    heldout: of those within one standard error of the lowest kernel distance to held-out patients, the one that copies
    least (``_preference``). fid: the lowest Fréchet distance to the training images, as the paper, which favours
    copies (D33).
    """
    eligible = still_eligible(candidates, rule)
    if rule == "last":
        return None, "the last snapshot, as generator.settings.snapshot asks"
    if not eligible:
        missing = "no snapshot was compared with " + ("held-out patients" if rule == "heldout" else "training images")
        return None, f"the last snapshot: {missing}"
    if rule == "fid":
        return eligible[0], "the lowest Fréchet distance to the training images"
    return max(eligible, key=_preference), (
        "of those within one standard error of the lowest kernel distance to held-out patients, "
        "the one that copies its training images least"
    )


def save_candidate(candidate: Candidate, tensors: Mapping[str, Tensor], out: Path) -> None:
    """Write the weights, whole or not at all."""
    save_tensors(candidate.path(out), tensors, {"step": candidate.step})


def load_candidate(candidate: Candidate, out: Path) -> Mapping[str, Tensor]:
    """The weights."""
    return load_tensors(candidate.path(out))[0]


def remove_candidates(out: Path, but: Iterable[Candidate] = ()) -> None:
    """Delete the weights of the snapshots that can no longer be chosen."""
    kept = {candidate.path(out) for candidate in but}
    for path in out.glob(CANDIDATE.format(step="*")):
        if path not in kept:
            path.unlink()


def chosen_as_metadata(candidate: Candidate | None, last: Candidate, rule: str, reason: str) -> dict[str, Any]:
    """What ``generator.safetensors`` says about the choice."""
    used = candidate or last
    return {
        "kimg": used.kimg,
        "step": used.step,
        "of_kimg": last.kimg,
        "rule": rule,
        "reason": reason,
        "scores": used.scores,
    }
