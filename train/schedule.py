"""The learning rate as a pure function of progress."""

from train.config import ScheduleConfig


def lr_factor(config: ScheduleConfig, epoch: float, epochs: float) -> float:
    """Return the factor on the peak rate at a point of the run, `epoch` and `epochs` in (part) epochs.

    During the warm-up it rises linearly; a polynomial then falls from 1 to 0 over the rest, as
    InsightFace's `PolynomialLRWarmup` does.
    """
    if epoch < config.warmup_epochs:
        return epoch / config.warmup_epochs
    if config.kind == "step":
        return float(config.gamma ** sum(epoch >= milestone for milestone in config.milestones))
    progress = (epoch - config.warmup_epochs) / (epochs - config.warmup_epochs)
    return float((1 - progress) ** config.power)
