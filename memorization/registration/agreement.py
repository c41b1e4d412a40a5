"""How far two aligned images agree: over which share of the frame, at which detail.

No single number sees every copy. A pasted lesion agrees in a small part down to the noise, a blurred copy only in
coarse structures but everywhere. So each band of detail gives the mean local correlation of the best parts of several
sizes, and the correlation over the whole frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memorization.registration.maps import SIZE_PX, band, displaced, halved, pooled, smooth, warped
from memorization.registration.poses import Poses
from memorization.registration.shared_places import SharedPlaces, shared_places

if TYPE_CHECKING:
    import torch

CEILING = 1e-4  # -log(1 - correlation) ends here: 1 - 1e-4 and 1 are one
CELLS = 16  # local correlations are taken on 16 x 16 places
LEAST_FRAME = 0.3  # a mean over less of the frame than this counts as over this much
FULL_FRAME = 0.5  # a correlation over less of the frame than this is worth less
LEAST_LEFT = 0.25  # of a band's energy, however much noise there seems to be
BLURRED_PX = (1.0, 2.0, 3.5)  # the references are also tried blurred, against a copy that is


@dataclass(frozen=True)
class Band:
    """Detail between two Gaussians; ``shares`` of the frame whose best places are averaged; seen at half size or not.

    A small part of a coarse band holds next to no information, so coarse bands have large shares only.
    """

    fine_px: float
    coarse_px: float
    window_px: int
    shares: tuple[float, ...]
    half_size: bool

    @property
    def name(self) -> str:
        """As statistics are called."""
        return f"{self.fine_px:g} to {self.coarse_px:g} px"


BANDS = (
    Band(0.0, 1.0, 9, (0.02, 0.04, 0.1, 0.25, 0.5, 1.0), False),
    Band(0.7, 1.6, 9, (0.02, 0.04, 0.1, 0.25, 0.5, 1.0), False),
    Band(1.2, 3.0, 11, (0.25, 0.5, 1.0), True),
    Band(2.5, 6.0, 19, (0.5, 1.0), True),
)
PART_BAND = BANDS[0]
NOISY_BANDS = BANDS[1:]  # what white noise leaves of them can be told from the finest
PIXELS_SMOOTHED_PX = (0.0, 4.0)  # a generator's copy may have little of the original but its light and shade
BENT_BANDS = tuple(Band(b.fine_px, b.coarse_px, b.window_px, (0.5, 1.0), b.half_size) for b in BANDS[:3])


def _names(bands: tuple[Band, ...], after: str = "") -> list[str]:
    places = [f"{b.name}, best {100 * share:g} %{after}" for b in bands for share in b.shares]
    return places + [f"{b.name}, frame{how}{after}" for b in bands for how in ("", ", flattened")]


POSED_NAMES = (
    *_names(BANDS),
    *(f"{b.name}, frame, noise taken off" for b in NOISY_BANDS),
    *("pixels" if sigma == 0 else f"coarser than {sigma:g} px" for sigma in PIXELS_SMOOTHED_PX),
)
NAMES = (*POSED_NAMES, *_names(BENT_BANDS, ", bent"))


class Agreement:
    """The references' bands, ready to be compared with."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self._bands = [_of(pixels, b) for b in BANDS]
        self._shared = [_shared(detail, b) for detail, b in zip(self._bands, BANDS, strict=True)]
        self._blurred = [[_of(smooth(pixels, sigma), b) for sigma in BLURRED_PX] for b in BANDS]
        self._smoothed = [smooth(pixels, sigma) for sigma in PIXELS_SMOOTHED_PX]
        self._gains = [_gain(b) for b in BANDS]

    def of_a_part(self, queries: torch.Tensor, poses: Poses, allowed: torch.Tensor) -> torch.Tensor:
        """(n,) local correlation of the best small part in fine detail: which poses of parts are worth aligning.

        ``allowed`` as in ``measure``.
        """
        seen, inside = warped(queries, poses.matrix, poses.shift, SIZE_PX)
        detail = _of(seen, PART_BAND) * poses.sign[:, None, None, None] * inside
        number = BANDS.index(PART_BAND)
        best = _best_local(detail, self._bands[number][poses.reference], PART_BAND)
        own = best * _at_places(inside) * self._shared[number].own_among(poses.reference, allowed)
        return _of_best(own, best, PART_BAND.shares[0])

    def measure(self, queries: torch.Tensor, poses: Poses, allowed: torch.Tensor) -> torch.Tensor:
        """(n, len(POSED_NAMES)) of ``-log(1 - correlation)``, larger is more alike.

        Args:
            queries: (n, 1, 64, 64), of the poses; allowed: (n, references) those that each may be compared with.
        """
        import torch

        seen, inside = warped(queries, poses.matrix, poses.shift, SIZE_PX)
        values = [
            self._in_bands(seen, inside, poses, BANDS, allowed),
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
        for number, b in enumerate(bands):
            valid = halved(inside) if b.half_size else inside
            detail = _of(seen, b) * poses.sign[:, None, None, None] * valid
            best = _best_local(detail, self._bands[number][poses.reference], b)
            places = _at_places(valid)
            own = best * places * self._shared[number].own_among(poses.reference, allowed)
            local += [_of_best(best * places if share == 1 else own, places, share) for share in b.shares]
            frame += _over_frame(detail, self._candidates(number, poses), valid, b)
        return torch.stack([*local, *frame], 1)

    def _candidates(self, number: int, poses: Poses) -> list[torch.Tensor]:
        """A band of the references, as they are and blurred."""
        return [self._bands[number][poses.reference], *(part[poses.reference] for part in self._blurred[number])]

    def _without_noise(self, seen: torch.Tensor, inside: torch.Tensor, poses: Poses) -> torch.Tensor:
        """(n, len(NOISY_BANDS)): correlation over the frame less the energy of white noise.

        What the reference does not explain of the finest detail is taken for noise, whose share of every other band
        follows; an honest image has little energy there, and gains little.
        """
        import torch

        finest = _of(seen, BANDS[0]) * inside
        unexplained = torch.stack([_unexplained(finest, r * inside) for r in self._candidates(0, poses)]).amin(0)
        corrected = []
        for number, b in enumerate(NOISY_BANDS, start=1):
            valid = halved(inside) if b.half_size else inside
            detail = _of(seen, b) * poses.sign[:, None, None, None] * valid
            energy = detail.square().sum((1, 2, 3))
            noise = unexplained * self._gains[number] / self._gains[0] * valid.sum((1, 2, 3))
            left = (energy - noise).clamp_min(LEAST_LEFT * energy).clamp_min(1e-12)
            gained = (energy / left).sqrt()
            covered = _covered(valid)
            alike = torch.stack([_correlation(detail, r, valid) for r in self._candidates(number, poses)]).amax(0)
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
    detail = band(pixels, b.fine_px, b.coarse_px)
    return halved(detail) if b.half_size else detail


def _window(b: Band) -> int:
    return (b.window_px // 2) | 1 if b.half_size else b.window_px


def _best_local(detail: torch.Tensor, reference: torch.Tensor, b: Band) -> torch.Tensor:
    """(n, places): local correlations, each the best within one sample of shift."""
    import torch
    from torch.nn import functional as F

    energy, size = pooled(detail * detail, _window(b), CELLS), detail.shape[-1]
    padded = F.pad(reference, (1, 1, 1, 1), mode="replicate")
    best: torch.Tensor | None = None
    for down in range(3):
        for right in range(3):
            local = _local(detail, padded[:, :, down : down + size, right : right + size], b, energy)
            best = local if best is None else torch.maximum(best, local)
    assert best is not None
    return best


def _local(detail: torch.Tensor, reference: torch.Tensor, b: Band, energy: torch.Tensor | None = None) -> torch.Tensor:
    """(n, places): local correlations as the two lie; ``energy``, where known, is the detail's local mean square."""
    import torch

    window = _window(b)
    energy = pooled(detail * detail, window, CELLS) if energy is None else energy
    both = torch.sqrt(energy * pooled(reference * reference, window, CELLS) + 1e-10)
    local: torch.Tensor = pooled(detail * reference, window, CELLS) / both
    return local.flatten(1)


def _shared(detail: torch.Tensor, b: Band) -> SharedPlaces:
    return shared_places(len(detail), lambda these, others: _local(detail[others], detail[these], b))


def _at_places(valid: torch.Tensor) -> torch.Tensor:
    """(n, places): whether the query covers the place."""
    stride = valid.shape[-1] // CELLS
    return valid[:, :, ::stride, ::stride].flatten(1)


def _of_best(local: torch.Tensor, places: torch.Tensor, share: float) -> torch.Tensor:
    """Mean of the best ``share`` of all places; of all that are covered, for 1."""
    if share == 1:
        mean: torch.Tensor = local.sum(1) / places.sum(1).clamp_min(LEAST_FRAME * local.shape[1])
        return mean
    best: torch.Tensor = local.topk(max(1, int(share * local.shape[1])), dim=1).values.mean(1)
    return best


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
