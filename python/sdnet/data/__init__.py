"""Data sets by name."""

from .batches import Evaluation, EvaluationBatches, Training, TrainingBatches
from .load import Data, load_data

__all__ = ["Data", "Evaluation", "EvaluationBatches", "Training", "TrainingBatches", "load_data"]
