from .cases import PreprocessedCase, read_preprocessed
from .negotiate import SiteStatistics, negotiate_plan, site_statistics
from .plan import PlanSettings, adopt_plan, plan_dataset
from .predict import SegmentationModel, load_model, predict_arrays, predict_normalised, read_raw_image
from .rounds import RoundTrainer, export_model
from .schedule import TrainSettings, learning_rate
from .training import train

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
