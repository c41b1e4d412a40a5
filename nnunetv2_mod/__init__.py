"""nnU-Net 2.8 as a library: the only room that imports it. No fork, no shared folders, no spawned pools."""

from nnunetv2_mod.negotiate import SiteStatistics, negotiate_plan, site_statistics
from nnunetv2_mod.plan import PlanSettings, adopt_plan, plan_dataset
from nnunetv2_mod.predict import SegmentationModel, load_model, predict_arrays, predict_normalised, read_raw_image
from nnunetv2_mod.preprocessed import PreprocessedCase, read_preprocessed
from nnunetv2_mod.rounds import RoundTrainer, export_model
from nnunetv2_mod.schedule import TrainSettings, learning_rate
from nnunetv2_mod.train import train

__all__ = [
    "PlanSettings",
    "PreprocessedCase",
    "RoundTrainer",
    "SegmentationModel",
    "SiteStatistics",
    "TrainSettings",
    "adopt_plan",
    "export_model",
    "learning_rate",
    "load_model",
    "negotiate_plan",
    "plan_dataset",
    "predict_arrays",
    "predict_normalised",
    "read_preprocessed",
    "read_raw_image",
    "site_statistics",
    "train",
]
