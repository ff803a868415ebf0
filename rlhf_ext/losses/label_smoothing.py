"""The option that DPO losses and losses of reward models have in common."""


def check_label_smoothing(label_smoothing: float) -> None:
    """Check the probability that a label is flipped.

    Raises:
        ValueError: It lies outside [0, 0.5).
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing, the probability that a label is flipped, must lie in [0, 0.5), got {label_smoothing}."
        )
