"""Pictures in a run's TensorBoard."""

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image


def show_in_tensorboard(trainer: Trainer, tag: str, picture: Image.Image, step: int) -> None:
    """Add a picture to the run's TensorBoard."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, np.array(picture), step, dataformats="HWC")
