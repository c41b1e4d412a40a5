"""How far two aligned images agree: over which share of the frame, at which detail.

No single number sees every copy. A pasted lesion agrees in a small part down to the noise, a blurred copy only in
coarse structures but everywhere. So each band of detail gives the mean local correlation of the best parts of several
sizes, and the correlation over the whole frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memorization.registration.local_correlation import (
    at_places,
    best_local_correlation,
    local_correlation,
    mean_of_best,
    two_directions,
)
from memorization.registration.maps import SIZE_PX, band, displaced, halved, smooth, warped
from memorization.registration.poses import Poses
from memorization.registration.shared_places import SharedPlaces, beyond_shared, shared_places

if TYPE_CHECKING:
    import torch

CEILING = 1e-4  # -log(1 - correlation) ends here: 1 - 1e-4 and 1 are one
FULL_FRAME = 0.5  # a correlation over less of the frame than this is worth less
LEAST_LEFT = 0.25  # of a band's energy, however much noise there seems to be
SMALL_SHARE = 0.1  # of the frame: straight edges alone fill as much in images that have nothing in common
EVENED_PX, LEAST_EVENED = 1.0, 0.004  # strong detail within so many px hides weak detail; less is not amplified
BLURRED_PX = (1.0, 2.0, 3.5)  # the references are also tried blurred, against a copy that is


@dataclass(frozen=True)
class Band:
    """Detail between two Gaussians; ``shares`` of the frame whose best places are averaged; seen at half size or not.

    A small part of a coarse band holds next to no information, so coarse bands have large shares only. An ``evened``
    band is divided by its own size nearby, and compared place by place alone.
    """

    fine_px: float
    coarse_px: float
    window_px: int
    shares: tuple[float, ...]
    half_size: bool
    evened: bool = False

    @property
    def name(self) -> str:
        """As statistics are called."""
        return f"{self.fine_px:g} to {self.coarse_px:g} px" + (" evened" if self.evened else "")

    @property
    def window(self) -> int:
        """Of local correlations, in samples."""
        return (self.window_px // 2) | 1 if self.half_size else self.window_px


BANDS = (
    Band(0.0, 1.0, 9, (0.02, 0.04, 0.1, 0.25, 0.5, 1.0), False),
    Band(0.7, 1.6, 9, (0.02, 0.04, 0.1, 0.25, 0.5, 1.0), False),
    Band(1.2, 3.0, 11, (0.25, 0.5, 1.0), True),
    Band(2.5, 6.0, 19, (0.5, 1.0), True),
)
EVENED_BAND = Band(0.0, 1.0, 9, (0.02, 0.04, 0.1), False, evened=True)
POSED_BANDS = (*BANDS, EVENED_BAND)
PART_BAND = BANDS[0]
NOISY_BANDS = BANDS[1:]  # what white noise leaves of them can be told from the finest
PIXELS_SMOOTHED_PX = (0.0, 4.0)  # a generator's copy may have little of the original but its light and shade
BENT_BANDS = tuple(Band(b.fine_px, b.coarse_px, b.window_px, (0.5, 1.0), b.half_size) for b in BANDS[:3])


def _names(bands: tuple[Band, ...], after: str = "") -> list[str]:
    places = [f"{b.name}, best {100 * share:g} %{after}" for b in bands for share in b.shares]
    return places + [f"{b.name}, frame{how}{after}" for b in bands if not b.evened for how in ("", ", flattened")]


POSED_NAMES = (
    *_names(POSED_BANDS),
    *(f"{b.name}, frame, noise taken off" for b in NOISY_BANDS),
    *("pixels" if sigma == 0 else f"coarser than {sigma:g} px" for sigma in PIXELS_SMOOTHED_PX),
)
NAMES = (*POSED_NAMES, *_names(BENT_BANDS, ", bent"))


@dataclass(frozen=True, eq=False)
class ReferenceBand:
    """The references in one band: ``detail`` (n, 1, s, s), what places share and what they can tell (n, places)."""

    detail: torch.Tensor
    blurred: tuple[torch.Tensor, ...]
    shared: SharedPlaces
    telling: torch.Tensor

    @classmethod
    def of(cls, pixels: torch.Tensor, b: Band) -> ReferenceBand:
        """References (n, 1, 64, 64)."""
        detail = _of(pixels, b)
        blurred = () if b.evened else tuple(_of(smooth(pixels, sigma), b) for sigma in BLURRED_PX)
        shared = shared_places(
            len(detail), lambda these, others: local_correlation(detail[others], detail[these], b.window)
        )
        return cls(detail, blurred, shared, two_directions(_uneven(pixels, b), b.window))

    def candidates(self, references: torch.Tensor) -> list[torch.Tensor]:
        """Some of them, as they are and blurred."""
        return [part[references] for part in (self.detail, *self.blurred)]

    def beyond_others(self, local: torch.Tensor, references: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """(b, places): what local correlations with some references say of a copy; ``allowed`` as in ``measure``."""
        return beyond_shared(local, self.shared.among(references, allowed))


class Agreement:
    """The references' bands, ready to be compared with."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self._bands = [ReferenceBand.of(pixels, b) for b in POSED_BANDS]
        self._smoothed = [smooth(pixels, sigma) for sigma in PIXELS_SMOOTHED_PX]
        self._gains = [_gain(b) for b in BANDS]

    def of_a_part(self, queries: torch.Tensor, poses: Poses, allowed: torch.Tensor) -> torch.Tensor:
        """(n,) local correlation of the best small part in fine detail: which poses of parts are worth aligning.

        ``allowed`` as in ``measure``.
        """
        seen, inside = warped(queries, poses.matrix, poses.shift, SIZE_PX)
        detail = _of(seen, PART_BAND) * poses.sign[:, None, None, None] * inside
        references = self._bands[POSED_BANDS.index(PART_BAND)]
        best = best_local_correlation(detail, references.detail[poses.reference], PART_BAND.window)
        told = at_places(inside) * references.beyond_others(best, poses.reference, allowed)
        return mean_of_best(told * references.telling[poses.reference], best, PART_BAND.shares[0])

    def measure(self, queries: torch.Tensor, poses: Poses, allowed: torch.Tensor) -> torch.Tensor:
        """(n, len(POSED_NAMES)) of ``-log(1 - correlation)``, larger is more alike.

        Args:
            queries: (n, 1, 64, 64), of the poses; allowed: (n, references) those that each may be compared with.
        """
        import torch

        seen, inside = warped(queries, poses.matrix, poses.shift, SIZE_PX)
        values = [
            self._in_bands(seen, inside, poses, POSED_BANDS, allowed),
            self._without_noise(seen, inside, poses),
            self._of_pixels(seen, inside, poses),
        ]
        return _as_likeness(torch.cat(values, 1), poses)

    def measure_bent(
        self, queries: torch.Tensor, poses: Poses, field: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """(n, the others of NAMES) after displacements (n, 2, 64, 64) in px."""
        seen, inside = displaced(queries, poses.matrix, poses.shift, field)
        return _as_likeness(self._in_bands(seen, inside, poses, BENT_BANDS, allowed), poses)

    def _in_bands(
        self,
        seen: torch.Tensor,
        inside: torch.Tensor,
        poses: Poses,
        bands: tuple[Band, ...],
        allowed: torch.Tensor,
    ) -> torch.Tensor:
        import torch

        local: list[torch.Tensor] = []
        frame: list[torch.Tensor] = []
        for b, references in zip(bands, self._bands, strict=False):  # bent bands are the first of them
            valid = halved(inside) if b.half_size else inside
            detail = _of(seen, b) * poses.sign[:, None, None, None] * valid
            best = best_local_correlation(detail, references.detail[poses.reference], b.window)
            places = at_places(valid)
            told = places * references.beyond_others(best, poses.reference, allowed)
            telling = told * references.telling[poses.reference]
            of_share = {share: telling if share <= SMALL_SHARE else told for share in b.shares} | {1.0: best * places}
            local += [mean_of_best(of_share[share], places, share) for share in b.shares]
            if not b.evened:
                frame += _over_frame(detail, references.candidates(poses.reference), valid, b)
        return torch.stack([*local, *frame], 1)

    def _without_noise(self, seen: torch.Tensor, inside: torch.Tensor, poses: Poses) -> torch.Tensor:
        """(n, len(NOISY_BANDS)): correlation over the frame less the energy of white noise.

        What the reference does not explain of the finest detail is taken for noise, whose share of every other band
        follows; an honest image has little energy there, and gains little.
        """
        import torch

        finest = _of(seen, BANDS[0]) * inside
        unexplained = torch.stack(
            [_unexplained(finest, r * inside) for r in self._bands[0].candidates(poses.reference)]
        ).amin(0)
        corrected = []
        for number, b in enumerate(NOISY_BANDS, start=1):
            valid = halved(inside) if b.half_size else inside
            detail = _of(seen, b) * poses.sign[:, None, None, None] * valid
            energy = detail.square().sum((1, 2, 3))
            noise = unexplained * self._gains[number] / self._gains[0] * valid.sum((1, 2, 3))
            left = (energy - noise).clamp_min(LEAST_LEFT * energy).clamp_min(1e-12)
            gained = (energy / left).sqrt()
            covered = _covered(valid)
            references = self._bands[number].candidates(poses.reference)
            alike = torch.stack([_correlation(detail, r, valid) for r in references]).amax(0)
            corrected.append((alike * gained).clamp_max(1) * covered)
        return torch.stack(corrected, 1)

    def _of_pixels(self, seen: torch.Tensor, inside: torch.Tensor, poses: Poses) -> torch.Tensor:
        """(n, len(PIXELS_SMOOTHED_PX)): correlation over the frame of the grey values themselves."""
        import torch

        covered, sign = _covered(inside), poses.sign
        alike = []
        for number, sigma in enumerate(PIXELS_SMOOTHED_PX):
            a = _centred(smooth(seen, sigma), inside)
            b = _centred(self._smoothed[number][poses.reference], inside)
            alike.append(_correlation(a, b, inside) * sign * covered)
        return torch.stack(alike, 1)


def _centred(pixels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Without the mean of where the image is."""
    weight = valid.sum((1, 2, 3), keepdim=True).clamp_min(1)
    return pixels - (pixels * valid).sum((1, 2, 3), keepdim=True) / weight


def _as_likeness(correlations: torch.Tensor, poses: Poses) -> torch.Tensor:
    import torch

    values = -torch.log((1 - correlations).clamp_min(CEILING))
    return torch.where(poses.plausible[:, None] & torch.isfinite(values), values, torch.zeros(()))


def _unexplained(detail: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(n,): mean square over the whole frame of what is left of the detail after the reference is fitted to it."""
    slope = (detail * reference).sum((1, 2, 3)) / (reference.square().sum((1, 2, 3)) + 1e-12)
    left: torch.Tensor = (detail - slope[:, None, None, None] * reference).square().mean((1, 2, 3))
    return left


def _gain(b: Band) -> float:
    """Mean square of white noise of unit variance in this band."""
    import torch

    impulse = torch.zeros(1, 1, SIZE_PX, SIZE_PX)
    impulse[..., SIZE_PX // 2, SIZE_PX // 2] = 1
    kept = _of(impulse, b)
    return float(kept.square().sum()) * (4 if b.half_size else 1)


def _covered(valid: torch.Tensor) -> torch.Tensor:
    return (valid.mean((1, 2, 3)) / FULL_FRAME).clamp_max(1)


def _of(pixels: torch.Tensor, b: Band) -> torch.Tensor:
    import torch

    detail = _uneven(pixels, b)
    if not b.evened:
        return detail
    return detail / torch.sqrt(smooth(detail * detail, EVENED_PX) + LEAST_EVENED**2)


def _uneven(pixels: torch.Tensor, b: Band) -> torch.Tensor:
    detail = band(pixels, b.fine_px, b.coarse_px)
    return halved(detail) if b.half_size else detail


def _over_frame(
    detail: torch.Tensor, references: list[torch.Tensor], valid: torch.Tensor, b: Band
) -> list[torch.Tensor]:
    """Correlation over the frame, as it is and with local size divided out; the best of the references."""
    import torch

    covered = _covered(valid)
    plain = [_correlation(detail, reference, valid) for reference in references]
    flat = _flattened(detail, b)
    even = [_correlation(flat, _flattened(reference, b), valid) for reference in references]
    return [torch.stack(values).amax(0) * covered for values in (plain, even)]


def _flattened(detail: torch.Tensor, b: Band) -> torch.Tensor:
    import torch

    return detail / torch.sqrt(smooth(detail * detail, b.coarse_px * (1 if b.half_size else 2)) + 1e-4)


def _correlation(a: torch.Tensor, b: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    import torch

    product = (a * b * valid).sum((1, 2, 3))
    return product / torch.sqrt((a * a * valid).sum((1, 2, 3)) * (b * b * valid).sum((1, 2, 3)) + 1e-12)
