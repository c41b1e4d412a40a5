"""One source's images as a study cuts them: trained on, of the site's other patients, and of unseen patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.image_set import ImageSet


@dataclass(frozen=True)
class StudySite:
    """Images of a site and of unseen patients; no patient is in two of the parts.

    ``trained_on``: what the generator sees, and what a filter compares with. ``validation``: images of the site's other
    patients, which choose the generator's snapshot and calibrate a filter. ``unseen``: images of patients that only
    scores and audits use.
    """

    trained_on: ImageSet
    validation: ImageSet
    unseen: ImageSet

    @property
    def own(self) -> ImageSet:
        """All images of the site."""
        images = np.concatenate([self.trained_on.images, self.validation.images])
        return ImageSet(images, self.trained_on.entries + self.validation.entries, self.trained_on.info)
