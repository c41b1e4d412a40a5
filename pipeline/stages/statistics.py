"""What a site tells for the common plan."""

from __future__ import annotations

from common.files import write_json
from common.settings import to_dict
from engine.run_stage import StageContext
from nnunetv2_mod import site_statistics


def tell_statistics(context: StageContext) -> None:
    """What a site tells for the common plan: medians and pooled intensities, no case of its own."""
    write_json(context.out / "statistics.json", to_dict(site_statistics(context.inputs["plan"])))
