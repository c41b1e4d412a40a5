"""How far two aligned images agree: over which share of the frame, at which detail.

No single number sees every copy. A pasted lesion agrees in a small part down to the noise, a blurred copy only in
coarse structures but everywhere. So each band of detail gives the mean local correlation of the best parts of several
sizes, and the correlation over the whole frame.

Not every place counts. Nearly every image has straight edges, and one edge lies over any other (``two_directions``);
frames and burnt-in text are in many images (``SharedPlaces``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from memorization.registration.bands import BANDS, BENT_BANDS, PIXELS_SMOOTHED_PX, POSED_BANDS, Band
from memorization.registration.maps import SIZE_PX, Poses, band, displaced, halved, pooled, smooth, warped

CELLS = 16  # correlations are taken on 16 x 16 places
LEAST_FRAME = 0.3  # a mean over less of the frame than this counts as over this much
TWO_DIRECTIONS = 0.15  # ratio of the structure tensor's eigenvalues from which a place counts in full


def local_correlation(
    detail: torch.Tensor, reference: torch.Tensor, window: int, energy: torch.Tensor | None = None
) -> torch.Tensor:
    """(n, places) of two bands (n, 1, s, s) as they lie; ``energy``, where known, is the detail's local mean square."""
    energy = pooled(detail * detail, window, CELLS) if energy is None else energy
    both = torch.sqrt(energy * pooled(reference * reference, window, CELLS) + 1e-10)
    return (pooled(detail * reference, window, CELLS) / both).flatten(1)


def best_local_correlation(detail: torch.Tensor, reference: torch.Tensor, window: int) -> torch.Tensor:
    """(n, places), each the best within one sample of shift."""
    energy, size = pooled(detail * detail, window, CELLS), detail.shape[-1]
    padded = F.pad(reference, (1, 1, 1, 1), mode="replicate")
    moved = (padded[:, :, down : down + size, right : right + size] for down in range(3) for right in range(3))
    best = local_correlation(detail, next(moved), window, energy)
    for other in moved:
        best = torch.maximum(best, local_correlation(detail, other, window, energy))
    return best


def two_directions(detail: torch.Tensor, window: int) -> torch.Tensor:
    """(n, places): 0 where detail (n, 1, s, s) varies along one direction only, 1 where along two.

    By the eigenvalues of the structure tensor (Shi and Tomasi, Good features to track, 1994).
    """
    across = F.pad(detail[..., 1:] - detail[..., :-1], (1, 0))
    along = F.pad(detail[..., 1:, :] - detail[..., :-1, :], (0, 0, 1, 0))
    xx, yy, xy = (pooled(g, window, CELLS).flatten(1) for g in (across * across, along * along, across * along))
    half_trace = (xx + yy) / 2
    apart = torch.sqrt(((xx - yy) / 2).square() + xy * xy)
    ratio = (half_trace - apart) / (half_trace + apart + 1e-12)
    return (ratio / TWO_DIRECTIONS).clamp(0, 1)


def at_places(valid: torch.Tensor) -> torch.Tensor:
    """(n, places): whether (n, 1, s, s) covers the place."""
    stride = valid.shape[-1] // CELLS
    return valid[:, :, ::stride, ::stride].flatten(1)


def mean_of_best(local: torch.Tensor, places: torch.Tensor, share: float) -> torch.Tensor:
    """(n,) mean of the best ``share`` of all places; where the share is 1, of all places that are covered."""
    if share == 1:
        return local.sum(1) / places.sum(1).clamp_min(LEAST_FRAME * local.shape[1])
    return local.topk(max(1, int(share * local.shape[1])), dim=1).values.mean(1)


N_OTHERS = 48  # references that each is compared with
SHARED_BY = 3  # of them
ALIKE, SAME = 0.6, 0.9  # correlations between which a place that others share counts less and less
LEFT = 0.25  # of what others leave unexplained: an image that leaves less than this has more than the others
IDENTICAL = 0.98  # from here on others have the very same text or frame, and no copy can have more of it
SAME_SCENE = 0.5  # mean correlation of two images, above which they are one patient's
SHARED_BLOCK = 32  # references at once
STEPS = 255  # of a correlation as it is kept


@dataclass(frozen=True, eq=False)
class SharedPlaces:
    """Where several references show the same: a frame, burnt-in text, a device's mark.

    Agreement at such a place says nothing of a copy, and would hide what a small part says. ``others`` (n, m):
    references that each was compared with; ``alike`` (n, places, m): their correlation, 0 to 255; ``shared``
    (n, places): the correlation with which several others show the same.
    """

    others: torch.Tensor
    alike: torch.Tensor
    shared: torch.Tensor

    def among(self, references: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """(b, places): ``shared`` of some references (b,), where only the ``allowed`` (b, n) others count.

        An image that calibrates must not count itself, nor its patient's: a new patient's image is not among the
        references either, and the guarantee of the p-value rests on the two being exchangeable.
        """
        if allowed.all():
            return self.shared[references]
        return _shared(self.alike[references] * torch.gather(allowed, 1, self.others[references])[:, None])


def shared_places(
    n_references: int, correlations: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> SharedPlaces:
    """Compare every reference with others.

    Others that are alike all over do not count: what the images of one patient share is the patient.

    Args:
        correlations: of references at these positions (b,) with others at these (b,), place by place (b, places).
    """
    n_others = min(N_OTHERS, n_references - 1)
    steps = torch.tensor([round((other + 1) * n_references / (n_others + 1)) for other in range(n_others)])
    others = (torch.arange(n_references)[:, None] + steps.long()) % n_references
    kept = []
    for block in torch.arange(n_references).split(SHARED_BLOCK):
        found = [correlations(block, others[block, number]) for number in range(n_others)]
        alike = torch.stack(found, 2) if found else correlations(block, block)[:, :, None][:, :, :0]
        alike = torch.where(alike.mean(1, keepdim=True) > SAME_SCENE, 0, alike)
        kept.append((alike.clamp(0, 1) * STEPS).round().to(torch.uint8))
    alike = torch.cat(kept)
    return SharedPlaces(others, alike, torch.cat([_shared(block) for block in alike.split(SHARED_BLOCK)]))


def _shared(alike: torch.Tensor) -> torch.Tensor:
    """(b, places, m) -> (b, places)."""
    if alike.shape[2] < SHARED_BY:
        return torch.zeros(alike.shape[:2])
    return alike.topk(SHARED_BY, dim=2).values[:, :, -1] / STEPS


def unshared(shared: torch.Tensor) -> torch.Tensor:
    """0 where several others show the same, 1 where none does."""
    return ((SAME - shared) / (SAME - ALIKE)).clamp(0, 1)


def beyond_shared(correlation: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """What is left of a correlation where several others have the correlation ``shared``.

    Less, down to nothing, unless it is much closer to 1 than theirs: neighbouring slices are alike, but only a copy is
    the same.
    """
    left = (1 - correlation) / (LEFT * (1 - shared).clamp_min(1 - IDENTICAL))
    more_than_others = torch.where(shared < IDENTICAL, 1 - left, 0)
    return torch.maximum(correlation * unshared(shared), more_than_others)


CEILING = 1e-4  # -log(1 - correlation) ends here: 1 - 1e-4 and 1 are one
FULL_FRAME = 0.5  # a correlation over less of the frame than this is worth less
LEAST_LEFT = 0.25  # of a band's energy, however much noise there seems to be
SMALL_SHARE = 0.1  # of the frame: straight edges alone fill as much in images that have nothing in common
EVENED_PX, LEAST_EVENED = 1.0, 0.004  # strong detail within so many px hides weak detail; less is not amplified
BLURRED_PX = (1.0, 2.0, 3.5)  # the references are also tried blurred, against a copy that is
PART_BAND = BANDS[0]


class ReferenceBand:
    """The references in one band: ``detail`` (n, 1, s, s), as it is and blurred, and what their places can tell."""

    def __init__(self, pixels: torch.Tensor, b: Band) -> None:
        detail = _detail(pixels, b)
        self._band, self._own = b, detail
        self._variants = [detail] if b.evened else [detail, *(_detail(smooth(pixels, px), b) for px in BLURRED_PX)]
        self._shared = shared_places(
            len(detail), lambda these, others: local_correlation(detail[others], detail[these], b.window)
        )
        self._telling = two_directions(_detail(pixels, b, evened=False), b.window)

    def candidates(self, references: torch.Tensor) -> list[torch.Tensor]:
        """The references at these positions, as they are and blurred."""
        return [variant[references] for variant in self._variants]

    def agreement(
        self, detail: torch.Tensor, valid: torch.Tensor, references: torch.Tensor, allowed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Local correlations (n, places) of details with references, place by place.

        As they are; less what other references share; and of that what varies along two directions. The last two are 0
        where the image does not cover the place.
        """
        best = best_local_correlation(detail, self._own[references], self._band.window)
        beyond = at_places(valid) * beyond_shared(best, self._shared.among(references, allowed))
        return best, beyond, beyond * self._telling[references]


class Agreement:
    """The references' bands, ready to be compared with."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self._bands = [ReferenceBand(pixels, b) for b in POSED_BANDS]
        self._smoothed = [smooth(pixels, sigma) for sigma in PIXELS_SMOOTHED_PX]
        impulse = torch.zeros(1, 1, SIZE_PX, SIZE_PX)
        impulse[..., SIZE_PX // 2, SIZE_PX // 2] = 1
        # mean square of white noise of unit variance in each band
        self._gains = [float(_detail(impulse, b).square().sum()) * (4 if b.half_size else 1) for b in BANDS]

    def of_a_part(self, queries: torch.Tensor, poses: Poses, allowed: torch.Tensor) -> torch.Tensor:
        """(n,) local correlation of the best small part in fine detail: which poses of parts are worth aligning.

        ``allowed`` as in ``measure``.
        """
        seen, inside = warped(queries, poses.matrix, poses.shift, SIZE_PX)
        detail = _detail(seen, PART_BAND) * poses.sign[:, None, None, None] * inside
        references = self._bands[POSED_BANDS.index(PART_BAND)]
        best, _, telling = references.agreement(detail, inside, poses.reference, allowed)
        return mean_of_best(telling, best, PART_BAND.shares[0])

    def measure(self, queries: torch.Tensor, poses: Poses, allowed: torch.Tensor) -> torch.Tensor:
        """(n, len(POSED_NAMES)) of ``-log(1 - correlation)``, larger is more alike.

        Args:
            queries: (n, 1, 64, 64), of the poses; allowed: (n, references) those that each may be compared with.
        """
        seen, inside = warped(queries, poses.matrix, poses.shift, SIZE_PX)
        values, noise_taken_off = self._in_bands(seen, inside, poses, POSED_BANDS, allowed)
        grey_values = []  # correlation over the frame of the grey values themselves
        for sigma, smoothed in zip(PIXELS_SMOOTHED_PX, self._smoothed, strict=True):
            a, b = (_centred(x, inside) for x in (smooth(seen, sigma), smoothed[poses.reference]))
            grey_values.append(_correlation(a, b, inside) * poses.sign * _covered(inside))
        return _as_likeness([*values, *noise_taken_off, *grey_values], poses)

    def measure_bent(
        self, queries: torch.Tensor, poses: Poses, field: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """(n, the others of NAMES) after displacements (n, 2, 64, 64) in px."""
        seen, inside = displaced(queries, poses.matrix, poses.shift, field)
        return _as_likeness(self._in_bands(seen, inside, poses, BENT_BANDS, allowed)[0], poses)

    def _in_bands(
        self, seen: torch.Tensor, inside: torch.Tensor, poses: Poses, bands: tuple[Band, ...], allowed: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Correlations (n,) by place and over the frame, in every band; and those over the frame less the noise."""
        local: list[torch.Tensor] = []
        frame: list[torch.Tensor] = []
        without_noise: list[torch.Tensor] = []
        unexplained = torch.zeros(len(seen))
        for number, b in enumerate(bands):  # the bent bands are the first of the posed ones
            valid = halved(inside) if b.half_size else inside
            detail = _detail(seen, b) * poses.sign[:, None, None, None] * valid
            # by place: a small part counts where its places tell something, the whole frame wherever the image is
            best, beyond, telling = self._bands[number].agreement(detail, valid, poses.reference, allowed)
            places = at_places(valid)
            for share in b.shares:
                counted = best * places if share == 1 else telling if share <= SMALL_SHARE else beyond
                local.append(mean_of_best(counted, places, share))
            if b.evened:
                continue
            # over the frame, as it is and with local size divided out; the best of the references as they are, blurred
            candidates, covered = self._bands[number].candidates(poses.reference), _covered(valid)
            plain = torch.stack([_correlation(detail, reference, valid) for reference in candidates]).amax(0)
            flat = _flattened(detail, b)
            even = torch.stack([_correlation(flat, _flattened(r, b), valid) for r in candidates]).amax(0)
            frame += [plain * covered, even * covered]
            # without noise: what no reference explains of the finest detail is taken for white noise, whose share of
            # every other band follows; an image that is no copy has little energy there, and gains little
            if number == 0:
                unexplained = torch.stack([_unexplained(detail, r * inside) for r in candidates]).amin(0)
            else:
                energy = detail.square().sum((1, 2, 3))
                noise = unexplained * self._gains[number] / self._gains[0] * valid.sum((1, 2, 3))
                left = (energy - noise).clamp_min(LEAST_LEFT * energy).clamp_min(1e-12)
                without_noise.append((plain * (energy / left).sqrt()).clamp_max(1) * covered)
        return [*local, *frame], without_noise


def _detail(pixels: torch.Tensor, b: Band, evened: bool = True) -> torch.Tensor:
    """The band of images (n, 1, 64, 64), divided by its local size where the band is ``evened``."""
    detail = band(pixels, b.fine_px, b.coarse_px)
    detail = halved(detail) if b.half_size else detail
    if not (b.evened and evened):
        return detail
    return detail / torch.sqrt(smooth(detail * detail, EVENED_PX) + LEAST_EVENED**2)


def _flattened(detail: torch.Tensor, b: Band) -> torch.Tensor:
    return detail / torch.sqrt(smooth(detail * detail, b.coarse_px * (1 if b.half_size else 2)) + 1e-4)


def _centred(pixels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Without the mean of where the image is."""
    weight = valid.sum((1, 2, 3), keepdim=True).clamp_min(1)
    return pixels - (pixels * valid).sum((1, 2, 3), keepdim=True) / weight


def _covered(valid: torch.Tensor) -> torch.Tensor:
    return (valid.mean((1, 2, 3)) / FULL_FRAME).clamp_max(1)


def _correlation(a: torch.Tensor, b: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    product = (a * b * valid).sum((1, 2, 3))
    return product / torch.sqrt((a * a * valid).sum((1, 2, 3)) * (b * b * valid).sum((1, 2, 3)) + 1e-12)


def _unexplained(detail: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(n,): mean square over the whole frame of what is left of the detail after the reference is fitted to it."""
    slope = (detail * reference).sum((1, 2, 3)) / (reference.square().sum((1, 2, 3)) + 1e-12)
    return (detail - slope[:, None, None, None] * reference).square().mean((1, 2, 3))


def _as_likeness(correlations: list[torch.Tensor], poses: Poses) -> torch.Tensor:
    """(n, statistics) of correlations (n,): 0 where the pose is implausible or there is no number."""
    values = -torch.log((1 - torch.stack(correlations, 1)).clamp_min(CEILING))
    return torch.where(poses.plausible[:, None] & torch.isfinite(values), values, torch.zeros(()))
