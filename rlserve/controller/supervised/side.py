"""The side of a run that learns from a data set."""

from __future__ import annotations

from rlserve.controller.batches.dataset import DatasetBatches
from rlserve.controller.data_side import DataSide
from rlserve.controller.supervised.evaluation import HeldOutRows
from rlserve.controller.supervised.trainers import SupervisedTrainers
from rlserve.supervised.source import SupervisedSource


def supervised_side(source: SupervisedSource, trainers: SupervisedTrainers) -> DataSide:
    """Batches and held-out rows of one source."""
    return DataSide(batches=DatasetBatches(source), evaluation=HeldOutRows(source, trainers))
