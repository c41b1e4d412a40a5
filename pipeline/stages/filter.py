"""Which synthetic images are too close to a real one."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from common.files import write_json
from dataset.training_splits import TRAIN_SPLITS
from engine.run_stage import StageContext
from memorization.filter import FilterResult, SiteFilter, joined, load_site_filter, write_scores
from memorization.pictures import draw_histogram, draw_nearest_pairs, draw_p_values
from pipeline.samples import Draw, Samples, load_samples

log = logging.getLogger(__name__)


def filter_copies(context: StageContext) -> None:
    """Drop samples too close to an image the generator saw and sample others in their place; labels go with theirs.

    The record of every image, also of the dropped ones, stays at the site. Where none passes, the audit refuses.
    """
    settings = context.stage.settings
    places, splits = (context.inputs["calibrate"], context.inputs["slices"]), TRAIN_SPLITS[settings["train_on"]]
    own = load_site_filter(*places, settings, splits, context.device, context.embeddings)
    samples, result = _replace_dropped(context, load_samples(context.inputs["sample"]), own)
    kept = np.flatnonzero(result.kept)
    names, of_references = ([entry.name for entry in of.entries] for of in (samples.images, own.references))
    write_scores(context.out / "scores.csv", names, result, of_references)
    if own.real_to_real is None:
        draw_histogram(context.out / "histogram.png", own.calibration, result.distances[:, 0])
    else:
        draw_p_values(context.out / "histogram.png", result, own.level)
    draw_nearest_pairs(context.out / "nearest_pairs.png", samples.images, own.references, result)
    write_json(context.out / "filter.json", _figures(own, len(samples), len(kept)))
    np.save(context.out / "features.npy", result.features[kept])  # the audit looks at them again
    samples.subset(kept).save(context.out)


def _replace_dropped(context: StageContext, samples: Samples, own: SiteFilter) -> tuple[Samples, FilterResult]:
    """All samples and their verdicts, until as many passed as were asked for or the limit is reached.

    Each round draws as many as are missing: of more, some might pass that nobody asked for. At a pass rate of 95 %
    that is 1.05 images drawn for each one kept, in as many rounds as their number has digits.
    """
    sampling = context.stage.settings["sampling"]
    n_asked = len(samples)
    limit = int(sampling["max_sampled_factor"] * n_asked)
    draw = Draw(sampling, sampling["seed"], len(str(n_asked - 1)))
    result = own.judge(samples.images.images, context.progress)
    while (n_missing := n_asked - int(result.kept.sum())) and len(samples) < limit:
        n_sampled = len(samples)
        others = draw(context, range(n_sampled, min(n_sampled + n_missing, limit)))
        samples = samples.followed_by(others)
        result = joined(result, own.judge(others.images.images, context.progress))
    if n_missing:
        log.warning(
            "%d of the %d images asked for passed the filter, of %d sampled; more are not sampled "
            "(generate.max_sampled_factor=%g)",
            *(n_asked - n_missing, n_asked, len(samples), sampling["max_sampled_factor"]),
        )
    return samples, result


def _figures(own: SiteFilter, n_sampled: int, n_kept: int) -> dict[str, Any]:
    """The aggregate figures that may leave with the package: no name, no single distance."""
    return {
        "rule": own.config.rule,
        "embedder": own.config.embedder,
        "calibration": own.config.calibration,
        "percentile": own.config.percentile,
        "level": own.level,
        "threshold_l2": own.calibration.threshold_l2 if own.real_to_real is None else None,
        "n_references": own.calibration.n_references,
        "n_sampled": n_sampled,
        "n_kept": n_kept,
        "n_dropped": n_sampled - n_kept,
    }
