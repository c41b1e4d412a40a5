"""What left each site in a DSL training: numbers and bytes, and in words what that lets the hub know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import write_json, write_text
from federated.dsl.features import N_FEATURES
from federated.dsl.settings import DslSettings

if TYPE_CHECKING:
    from torch import Tensor

    from federated.dsl.begin import SiteFacts

CARD = "CARD.md"
EXCHANGE = "exchange.json"
FLOAT32_BYTES, FLOAT64_BYTES = 4, 8


@dataclass(frozen=True)
class Traffic:
    """What hub and one site exchanged in all iterations so far, and when the site was left out."""

    n_fakes: int = 0
    fake_bytes: int = 0
    n_gradients: int = 0
    gradient_bytes: int = 0
    n_left_out: int = 0
    first_left_out: int | None = None
    last_left_out: int | None = None
    last_reason: str = ""

    def after(self, fakes: bytes, gradient: Tensor | None) -> Traffic:
        """One iteration more; ``gradient`` (n, ...) is None where the site sent none that could be used."""
        received = replace(self, n_fakes=self.n_fakes + 1, fake_bytes=self.fake_bytes + len(fakes))
        if gradient is None:
            return received
        n_bytes = self.gradient_bytes + FLOAT32_BYTES * gradient.numel()
        return replace(received, n_gradients=self.n_gradients + len(gradient), gradient_bytes=n_bytes)

    def left_out(self, iteration: int, reason: str) -> Traffic:
        """An iteration (counted from 1) that went on without the site."""
        first = iteration if self.first_left_out is None else self.first_left_out
        return replace(
            self,
            n_left_out=self.n_left_out + 1,
            first_left_out=first,
            last_left_out=iteration,
            last_reason=reason,
        )


def write_exchange(
    out: Path,
    sites: Mapping[str, SiteFacts],
    traffic: Mapping[str, Traffic],
    settings: DslSettings,
    n_iterations: int,
) -> None:
    """Write ``exchange.json`` and ``CARD.md``; bytes are of the tensors, without the few of their headers."""
    left = {site: _left(facts, traffic[site]) for site, facts in sites.items()}
    protection = {"clip_norm": settings.dp_clip_norm, "noise_multiplier": settings.dp_noise_multiplier}
    content = {"schema": 1, "n_iterations": n_iterations, "protection_of_gradients": protection, "sites": left}
    write_json(out / EXCHANGE, content)
    write_text(out / CARD, _card(left, settings, n_iterations))


def _left(facts: SiteFacts, traffic: Traffic) -> dict[str, Any]:
    return {
        "masks": {"n": facts.n_images, "bytes": int(facts.masks.nbytes)},
        "slices_without_label": {"n": facts.n_empty, "used": False},
        "gradients": {"n": traffic.n_gradients, "bytes": traffic.gradient_bytes},
        "feature_statistics": {"n": 2, "bytes": FLOAT64_BYTES * N_FEATURES * (N_FEATURES + 1)},
        "facts": ["number of images", "size", "channels", "labels", "intensity range", "pixel spacing", "losses"],
        "received_fakes": {"n_iterations": traffic.n_fakes, "bytes": traffic.fake_bytes},
        "left_out": {
            "n_iterations": traffic.n_left_out,
            "first": traffic.first_left_out,
            "last": traffic.last_left_out,
            "last_reason": traffic.last_reason,
        },
    }


def _card(left: Mapping[str, Mapping[str, Any]], settings: DslSettings, n_iterations: int) -> str:
    lines = [
        "# What left the sites: Distributed Synthetic Learning",
        "",
        f"One generator at the hub, {n_iterations} iterations, a discriminator at each site. Real images stayed at the"
        " sites; what follows did not.",
        "",
        "| site | masks | MB | gradients | MB | feature statistics, kB | iterations left out |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_row(site, values) for site, values in left.items()),
        "",
        "- **Masks: every training mask of the site, a real segmentation of a real patient**, at full size, without"
        " names. Shapes of organs and lesions can single out a patient. DSL cannot work without them.",
        "- **Gradients** of the losses with respect to the hub's own fakes, one a fake.",
        *_gradient_lines(settings),
        f"- **Feature statistics**: mean and covariance of {N_FEATURES} features of the real images, for Dist-FID.",
        "- **Facts**: number of images and of slices without a label (which take no part), size, channels, labels,"
        " range of intensities, pixel spacing, and the losses of every iteration.",
        "",
        "Not audited: the generator may reproduce training images; unlike the packages of `sharing/`, DSL has no filter"
        " before the hub sees its images. After an interruption, iterations that were done again are counted once.",
        "",
    ]
    return "\n".join(lines)


def _row(site: str, values: Mapping[str, Any]) -> str:
    masks, gradients, statistics = (values[key] for key in ("masks", "gradients", "feature_statistics"))
    return (
        f"| {site} | {masks['n']} | {masks['bytes'] / 1e6:.2f} | {gradients['n']} | {gradients['bytes'] / 1e6:.2f} "
        f"| {statistics['bytes'] / 1e3:.1f} | {values['left_out']['n_iterations']} |"
    )


def _gradient_lines(settings: DslSettings) -> list[str]:
    if settings.dp_clip_norm is not None and settings.dp_noise_multiplier > 0:
        return [
            f"  Each was clipped to a norm of {settings.dp_clip_norm:g} and got Gaussian noise of "
            f"{settings.dp_noise_multiplier:g} clip norms. This is no accounted differential privacy: the masks are"
            " exact, a discriminator has seen the same images before, and the noise follows from the site's seed,"
            " which must stay at the site."
        ]
    return [
        "  **They are not harmless**: the gradient of the L1 loss is the sign of (fake - real) in every pixel. A hub"
        " that chooses its fakes finds an 8-bit image by bisection in about 8 questions. These images stayed at the"
        " sites only as far as the hub is trusted to send what the protocol says. `dp_clip_norm` and"
        " `dp_noise_multiplier` weaken this."
    ]
