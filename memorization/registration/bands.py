"""What the agreement of two aligned images is measured in: bands of detail, and the names of the statistics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Band:
    """The detail between two Gaussians.

    A band is measured over its best places, for several ``shares`` of the frame. A small part of a coarse band holds
    next to no information, so coarse bands have large shares only, and are measured at half size. An ``evened`` band is
    divided by its own local size first; it is measured place by place only.
    """

    fine_px: float
    coarse_px: float
    window_px: int  # of local correlations
    shares: tuple[float, ...]
    half_size: bool
    evened: bool = False

    @property
    def name(self) -> str:
        """As it stands in the names of statistics."""
        return f"{self.fine_px:g} to {self.coarse_px:g} px" + (" evened" if self.evened else "")

    @property
    def window(self) -> int:
        """Side of the window of local correlations, in samples."""
        return (self.window_px // 2) | 1 if self.half_size else self.window_px


BANDS = (
    Band(0.0, 1.0, 9, (0.02, 0.04, 0.1, 0.25, 0.5, 1.0), False),
    Band(0.7, 1.6, 9, (0.02, 0.04, 0.1, 0.25, 0.5, 1.0), False),
    Band(1.2, 3.0, 11, (0.25, 0.5, 1.0), True),
    Band(2.5, 6.0, 19, (0.5, 1.0), True),
)
POSED_BANDS = (*BANDS, Band(0.0, 1.0, 9, (0.02, 0.04, 0.1), False, evened=True))
BENT_BANDS = tuple(Band(b.fine_px, b.coarse_px, b.window_px, (0.5, 1.0), b.half_size) for b in BANDS[:3])
PIXELS_SMOOTHED_PX = (0.0, 4.0)  # a generator's copy may share little with the original but coarse light and shade


def _names(bands: tuple[Band, ...], after: str = "") -> list[str]:
    places = [f"{b.name}, best {100 * share:g} %{after}" for b in bands for share in b.shares]
    return places + [f"{b.name}, frame{how}{after}" for b in bands if not b.evened for how in ("", ", flattened")]


POSED_NAMES = (
    *_names(POSED_BANDS),
    *(f"{b.name}, frame, noise taken off" for b in BANDS[1:]),
    *("pixels" if sigma == 0 else f"coarser than {sigma:g} px" for sigma in PIXELS_SMOOTHED_PX),
)
NAMES = (*POSED_NAMES, *_names(BENT_BANDS, ", bent"))
