"""A story stays in one piece: how many files a reader opens who follows a stage's data, and how often they climb back.

The walk (``support.journey``) enters every function that the stage's context, or what was computed from it, is handed
to. ``common/`` is the vocabulary that every room shares, so it is not counted as a place to go to. Before the rooms
were redesigned the same walk met 19, 14 and 6 files.
"""

from __future__ import annotations

import pytest
from support.journey import journey_of
from support.rooms import LEVELS

MOST_FILES, MOST_CLIMBS = 10, 2
STAGES = ("calibrate:calibrate_threshold", "audit:audit_site", "prepare:prepare")


@pytest.mark.parametrize("stage", STAGES)
def test_the_data_of_a_stage_meets_few_files_and_climbs_back_seldom(stage: str) -> None:
    journey = journey_of(f"pipeline.stages.{stage}")
    story = [module for module in journey.files if not module.startswith("common.")]
    heights = [LEVELS[module.split(".")[0]] for module in story]
    climbs = [after for after, before, now in zip(story[1:], heights, heights[1:], strict=False) if now > before]
    assert len(set(story)) <= MOST_FILES and len(climbs) <= MOST_CLIMBS, " > ".join(story)
    assert len(set(story)) > 3, "the walk lost its way"
