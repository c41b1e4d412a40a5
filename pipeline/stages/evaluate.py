"""One model on one site's real test fold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.files import read_json, write_json
from engine.run_stage import StageContext
from evaluation.curves import describe_network, read_curves
from evaluation.results import write_results
from evaluation.segmentation import score_case
from nnunetv2_mod import load_model, predict_arrays, read_raw_image
from nnunetv2_mod.raw_dataset import raw_dataset


def evaluate(context: StageContext) -> None:
    """Dice, IoU, HD95 and NSD of every test case and label, and what the network's own training says of it.

    The label maps are kept for whoever wants to look. Patients are numbered, so that a table that is exported shows
    which cases belong together and nothing else of them.
    """
    settings, stage = context.stage.settings, context.stage
    dataset = raw_dataset(context.inputs["prepare"])
    dataset_json = read_json(dataset / "dataset.json")
    labels = {name: value for name, value in dataset_json["labels"].items() if value != 0}
    model = load_model(context.inputs["model"] / settings["model_folder"], context.device)
    curve = context.inputs["model"] / "curves.jsonl"
    ending = dataset_json["file_ending"]
    patients = patient_numbers(read_json(dataset.parent / "patients.json"))
    named = {"model": settings["model"], "trained_on": settings["trained_on"], "fold": stage.fold}
    named["seed"] = settings["seed"]
    rows, predictions = [], {}
    truths = sorted((dataset / "labelsTs").glob(f"*{ending}"))
    for n_done, truth in enumerate(truths, start=1):
        case = truth.name.removesuffix(ending)
        image, spacing = read_raw_image(model, sorted((dataset / "imagesTs").glob(f"{case}_[0-9]*{ending}")))
        (predicted,) = predict_arrays(model, [image], [spacing])
        reference = read_raw_image(model, [truth])[0][0]
        predictions[case] = predicted.astype(np.uint8)
        for score in score_case(reference, predicted, spacing, labels, settings["nsd_tolerance"]):
            rows.append({**named, "tested_on": stage.site, "patient": patients[case], "case": case, **vars(score)})
        context.progress(n_done, len(truths), "cases")
    np.savez_compressed(context.out / "predictions.npz", allow_pickle=False, **predictions)
    write_json(context.out / "network.json", named | describe_network(read_curves(curve)))
    write_results(context.out / "results.csv", rows)


def patient_numbers(patients: Mapping[str, str]) -> dict[str, str]:
    """case -> ``p001`` and so on; patients are numbered in the order of their cases' names."""
    numbers = {patient: f"p{n:03d}" for n, patient in enumerate(dict.fromkeys(map(patients.get, sorted(patients))), 1)}
    return {case: numbers[patient] for case, patient in patients.items()}
