"""One model on one site's real test fold."""

from __future__ import annotations

import numpy as np

from common.files import read_json
from engine.run_stage import StageContext
from evaluation.results import write_results
from evaluation.segmentation import score_case
from nnunetv2_mod import load_model, predict_arrays, read_raw_image
from nnunetv2_mod.raw_dataset import raw_dataset


def evaluate(context: StageContext) -> None:
    """Dice, IoU, HD95 and NSD of every test case and label; the label maps are kept for whoever wants to look."""
    settings, stage = context.stage.settings, context.stage
    dataset = raw_dataset(context.inputs["prepare"])
    dataset_json = read_json(dataset / "dataset.json")
    labels = {name: value for name, value in dataset_json["labels"].items() if value != 0}
    model = load_model(context.inputs["model"] / settings["model_folder"], context.device)
    ending = dataset_json["file_ending"]
    rows, predictions = [], {}
    tested = {"model": settings["model"], "trained_on": settings["trained_on"]}
    tested |= {"tested_on": stage.site, "fold": stage.fold}
    truths = sorted((dataset / "labelsTs").glob(f"*{ending}"))
    for n_done, truth in enumerate(truths, start=1):
        case = truth.name.removesuffix(ending)
        image, spacing = read_raw_image(model, sorted((dataset / "imagesTs").glob(f"{case}_[0-9]*{ending}")))
        (predicted,) = predict_arrays(model, [image], [spacing])
        reference = read_raw_image(model, [truth])[0][0]
        predictions[case] = predicted.astype(np.uint8)
        for score in score_case(reference, predicted, spacing, labels, settings["nsd_tolerance"]):
            rows.append({**tested, "case": case, **vars(score)})
        context.progress(n_done, len(truths), "cases")
    np.savez_compressed(context.out / "predictions.npz", allow_pickle=False, **predictions)
    write_results(context.out / "results.csv", rows)
