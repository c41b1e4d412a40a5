"""What left each site in a DSL training: numbers and bytes, and in words what that lets the hub know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass
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

    def add(self, fakes: bytes, gradient: Tensor | None) -> None:
        """One iteration more; ``gradient`` (n, ...) is None where the site sent none that could be used."""
        self.n_fakes += 1
        self.fake_bytes += len(fakes)
        if gradient is not None:
            self.n_gradients += len(gradient)
            self.gradient_bytes += FLOAT32_BYTES * gradient.numel()

    def leave_out(self, iteration: int, reason: str) -> None:
        """An iteration (counted from 1) that went on without the site."""
        self.n_left_out += 1
        if self.first_left_out is None:
            self.first_left_out = iteration
        self.last_left_out, self.last_reason = iteration, reason


def write_exchange(
    out: Path,
    sites: Mapping[str, SiteFacts],
    traffic: Mapping[str, Traffic],
    settings: DslSettings,
    n_iterations: int,
) -> None:
    """Write ``exchange.json`` and ``CARD.md``; bytes are of the tensors, without the few of their headers."""
    statistics_bytes = FLOAT64_BYTES * N_FEATURES * (N_FEATURES + 1)
    left: dict[str, dict[str, Any]] = {}
    rows = []
    for site, facts in sites.items():
        sent = traffic[site]
        left[site] = {
            "masks": {"n": facts.n_images, "bytes": int(facts.masks.nbytes)},
            "slices_without_label": {"n": facts.n_empty, "used": False},
            "gradients": {"n": sent.n_gradients, "bytes": sent.gradient_bytes},
            "feature_statistics": {"n": 2, "bytes": statistics_bytes},
            "facts": ["number of images", "size", "channels", "labels", "intensity range", "pixel spacing", "losses"],
            "received_fakes": {"n_iterations": sent.n_fakes, "bytes": sent.fake_bytes},
            "left_out": {
                "n_iterations": sent.n_left_out,
                "first": sent.first_left_out,
                "last": sent.last_left_out,
                "last_reason": sent.last_reason,
            },
        }
        rows.append(
            f"| {site} | {facts.n_images} | {facts.masks.nbytes / 1e6:.2f} | {sent.n_gradients} "
            f"| {sent.gradient_bytes / 1e6:.2f} | {statistics_bytes / 1e3:.1f} | {sent.n_left_out} |"
        )
    protection = {"clip_norm": settings.dp_clip_norm, "noise_multiplier": settings.dp_noise_multiplier}
    content = {"schema": 1, "n_iterations": n_iterations, "protection_of_gradients": protection, "sites": left}
    write_json(out / EXCHANGE, content)
    is_protected = settings.dp_clip_norm is not None and settings.dp_noise_multiplier > 0
    text = CARD_TEXT.format(
        n_iterations=n_iterations,
        rows="\n".join(rows),
        n_features=N_FEATURES,
        gradients=PROTECTED.format(clip_norm=settings.dp_clip_norm, noise=settings.dp_noise_multiplier)
        if is_protected
        else UNPROTECTED,
    )
    write_text(out / CARD, text)


CARD_TEXT = """# What left the sites: Distributed Synthetic Learning

One generator at the hub, {n_iterations} iterations, a discriminator at each site. Real images stayed at the \
sites; what follows did not.

| site | masks | MB | gradients | MB | feature statistics, kB | iterations left out |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{rows}

- **Masks: every training mask of the site, a real segmentation of a real patient**, at full size, without \
names. Shapes of organs and lesions can single out a patient. DSL cannot work without them.
- **Gradients** of the losses with respect to the hub's own fakes, one a fake.
{gradients}
- **Feature statistics**: mean and covariance of {n_features} features of the real images, for Dist-FID.
- **Facts**: number of images and of slices without a label (which take no part), size, channels, labels, range \
of intensities, pixel spacing, and the losses of every iteration.

Not audited: the generator may reproduce training images; unlike the packages of `sharing/`, DSL has no filter \
before the hub sees its images. After an interruption, iterations that were done again are counted once.
"""
PROTECTED = """\
  Each was clipped to a norm of {clip_norm:g} and got Gaussian noise of {noise:g} clip norms. This is no \
accounted differential privacy: the masks are exact, a discriminator has seen the same images before, and the \
noise follows from the site's seed, which must stay at the site."""
UNPROTECTED = """\
  **They are not harmless**: the gradient of the L1 loss is the sign of (fake - real) in every pixel. A hub that\
 chooses its fakes finds an 8-bit image by bisection in about 8 questions. These images stayed at the sites only\
 as far as the hub is trusted to send what the protocol says. `dp_clip_norm` and `dp_noise_multiplier` weaken \
this."""
