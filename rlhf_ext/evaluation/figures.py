"""Figures of a reward model's evaluation, at a phone's width. Dark pages turn their colours round."""

import io
from collections.abc import Callable, Sequence

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from .calibration import Calibration
from .page import Figure
from .reward import Group
from .statistics import Array

SIZE, DPI = (4.6, 3.4), 160
CHOSEN, REJECTED = "#2a9d8f", "#e07a5f"  # told apart also by those who do not see red and green
INK, GUIDE = "#1b2430", "#8a94a3"
STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.edgecolor": GUIDE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
}


def draw(name: str, plot: Callable[[Axes], None], caption: str, description: str) -> Figure:
    """Return a figure.

    Args:
        name: What its file is called.
        plot: Draws on the axes it gets.
        caption: The sentence below the figure.
        description: What it shows, for those who cannot see it.
    """
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=SIZE, layout="constrained")  # not pyplot's: no window, nothing global
        plot(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=DPI, format="png")
    return Figure(name, buffer.getvalue(), caption, description)


def _legend(axes: Axes) -> None:
    # Above the axes: looking for the best place among the points can take seconds, and then warns.
    axes.legend(fontsize="small", loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def reliability(models: dict[str, Calibration]) -> Figure:
    """Draw the accuracy in each bin against the confidence there."""

    def plot(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], "--", color=GUIDE, label="calibrated")
        for (name, points), colour in zip(models.items(), (CHOSEN, REJECTED), strict=False):
            sizes = 12 + 120 * points.counts / points.counts.max()
            axes.plot(points.confidences, points.accuracies, color=colour, alpha=0.6)
            axes.scatter(points.confidences, points.accuracies, s=sizes, color=colour, label=name, zorder=3)
        axes.set(xlabel="confidence in the preferred answer", ylabel="accuracy", xlim=(0.48, 1.02), ylim=(None, 1.03))
        _legend(axes)

    errors = ", ".join(f"{name}: {points.error:.3f}" for name, points in models.items())
    return draw(
        "reliability",
        plot,
        "Each dot is a bin of pairs. Below the dashed line the model is surer than it may be.",
        f"Reliability diagram. Expected calibration error of {errors}.",
    )


def score_histogram(name: str, title: str, chosen: Array, rejected: Array) -> Figure:
    """Draw how the scores of chosen and rejected answers are distributed."""

    def plot(axes: Axes) -> None:
        edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), bins=30)
        for name, scores, colour in (("chosen", chosen, CHOSEN), ("rejected", rejected, REJECTED)):
            axes.hist(scores, edges, alpha=0.6, color=colour, label=name)
        axes.set(xlabel="score", ylabel="answers", title=title)
        _legend(axes)

    return draw(
        name,
        plot,
        "Scores of chosen and rejected answers, over all prompts.",
        f"Histogram. Mean score {chosen.mean():.3g} of chosen and {rejected.mean():.3g} of rejected answers.",
    )


def accuracy_by_strength(models: dict[str, Sequence[Group]]) -> Figure:
    """Draw the accuracy, with its interval, on weakly and on strongly preferred pairs."""

    def plot(axes: Axes) -> None:
        axes.axhline(0.5, linestyle="--", color=GUIDE)
        for shift, ((name, groups), colour) in enumerate(zip(models.items(), (CHOSEN, REJECTED), strict=False)):
            for position, group in enumerate(groups):
                x, accuracy = position + 0.12 * shift, group.accuracy
                axes.plot([x, x], [accuracy.low, accuracy.high], color=colour, linewidth=2)
            values = [group.accuracy.value for group in groups]
            axes.plot(np.arange(len(groups)) + 0.12 * shift, values, "o", color=colour, label=name)
        axes.set_xticks(
            range(len(groups)), [f"{group.name}\n{group.count} pairs" for group in groups], fontsize="small"
        )
        axes.set(xlabel="strength of the preference", ylabel="accuracy")
        if len(models) > 1:
            _legend(axes)

    values = "; ".join(
        f"{name}: " + ", ".join(f"{group.accuracy.value:.3f} at {group.name}" for group in groups)
        for name, groups in models.items()
    )
    return draw(
        "accuracy_by_strength",
        plot,
        "Clear preferences should be easier than close ones.",
        f"Accuracy by strength. {values}.",
    )


def length_scatter(name: str, title: str, differences: Array, lengths: Array) -> Figure:
    """Draw score difference against length difference, one dot a pair."""

    def plot(axes: Axes) -> None:
        axes.axhline(0, color=GUIDE, linewidth=0.8)
        axes.axvline(0, color=GUIDE, linewidth=0.8)
        right = differences > 0
        for name, members, colour in (("right", right, CHOSEN), ("wrong", ~right, REJECTED)):
            size = 14 if len(lengths) < 1000 else 5
            axes.scatter(
                lengths[members], differences[members], s=size, alpha=0.5, linewidths=0, color=colour, label=name
            )
        axes.set(xlabel="characters, chosen minus rejected", ylabel="score, chosen minus rejected", title=title)
        _legend(axes)

    return draw(
        name,
        plot,
        "A model that counts characters would follow the diagonal; wrong pairs then lie to the left.",
        f"Scatter plot of score difference against length difference of {len(lengths)} pairs.",
    )


def rating_scatter(name: str, title: str, scores: Array, ratings: Array) -> Figure:
    """Draw scores against ratings, one dot an answer."""

    def plot(axes: Axes) -> None:
        distinct = np.unique(ratings).size
        few = distinct <= 12
        spread = (np.ptp(ratings) / (6 * distinct) if few else 0) * np.random.default_rng(0).uniform(
            -1, 1, len(ratings)
        )
        size = 14 if len(ratings) < 1000 else 5
        axes.scatter(ratings + spread, scores, s=size, alpha=0.5, linewidths=0, color=CHOSEN)
        for rating in np.unique(ratings) if few else ():
            axes.plot(rating, np.mean(scores[ratings == rating]), "_", color=REJECTED, markersize=22, markeredgewidth=3)
        axes.set(xlabel="rating", ylabel="score", title=title)

    return draw(
        name,
        plot,
        "One dot an answer; a bar marks the mean score of a rating, where there are few ratings.",
        f"Scatter plot of score against rating of {len(ratings)} answers.",
    )
