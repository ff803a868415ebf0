"""The curves of a run: metrics over steps with their healthy bands, and rewards over KL."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from ..evaluation.figures import CHOSEN, GUIDE, INK, REJECTED, draw
from ..evaluation.page import Figure
from .bands import Band

COLOURS = (CHOSEN, REJECTED, "#8a6bd1", "#c9971c")
BAND_COLOUR = "#2a9d8f"
TRAINING_ONLY = {"clip_fraction"}  # evaluation makes no steps, and would show 0
Log = Sequence[Mapping[str, Any]]


def with_start(log_history: Log, before: Mapping[str, float]) -> list[Mapping[str, Any]]:
    """Return the history with what `evaluate_before` returned put first, as an entry of step 0."""
    return [{"step": 0} | {key.removesuffix("_before"): value for key, value in before.items()}, *log_history]


def points(history: Log, metric: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a metric was logged, in order, and its values there.

    Evaluating twice at one step, as at the end of a run with `eval_strategy`, gives one point.
    """
    logged = {entry["step"]: entry[metric] for entry in history if entry.get(metric) is not None}
    steps = sorted(logged)
    return steps, [logged[step] for step in steps]


def first_values(history: Log) -> dict[str, float]:
    """Return the first value of each metric, by its name without `eval_`; held-out ones go before those of training."""
    first: dict[str, float] = {}
    for prefix in ("eval_", ""):
        for entry in history:
            for key, value in entry.items():
                if key.startswith(prefix) and isinstance(value, int | float):
                    first.setdefault(key.removeprefix(prefix), value)
    return first


def panel_figures(history: Log, panels: Mapping[str, Sequence[str]], bands: Mapping[str, Band]) -> list[Figure]:
    """Return a figure for each panel that has something to show.

    Args:
        history: As `with_start` returns it.
        panels: Titles, and the metrics of each.
        bands: As `healthy_bands` returns them; the band of a panel's first metric that has one is shaded.
    """
    drawn = []
    for title, metrics in panels.items():
        if any(points(history, f"{prefix}{metric}")[0] for metric in metrics for prefix in ("", "eval_")):
            band = next((bands[metric] for metric in metrics if metric in bands), None)
            drawn.append(_panel(history, title, metrics, band))
    return drawn


def _panel(history: Log, title: str, metrics: Sequence[str], band: Band | None) -> Figure:
    curves, dots = _curves(history, metrics), _dots(history, metrics)

    def plot(axes: Axes) -> None:
        plot_panel(axes, history, title, metrics, band)

    caption = "Lines: training batches. Dots: held-out rows." if any(steps for steps, _ in dots.values()) else ""
    if band is not None:
        caption = f"Shaded: healthy, {band.why}. {caption}".strip()
    ends = "; ".join(
        f"{metric} from {values[0]:.3g} to {values[-1]:.3g}"
        for metric, (_, values) in (*curves.items(), *((f"held-out {name}", xy) for name, xy in dots.items()))
        if values
    )
    return draw(f"curve_{title.replace(' ', '_')}", plot, caption, f"{title} over steps: {ends}.")


def plot_panel(axes: Axes, history: Log, title: str, metrics: Sequence[str], band: Band | None = None) -> None:
    """Draw metrics over steps: lines for training batches, dots for held-out rows.

    Args:
        axes: Where.
        history: As `with_start` returns it.
        title: Of the panel.
        metrics: What to draw.
        band: Where the first of them should lie.
    """
    curves, dots, alone = _curves(history, metrics), _dots(history, metrics), len(metrics) == 1
    for metric, colour in zip(metrics, COLOURS * len(metrics), strict=False):
        if curves[metric][0]:
            axes.plot(*curves[metric], color=colour, linewidth=1.6, label=None if alone else _short(metric))
        if dots[metric][0]:
            label = None if alone or curves[metric][0] else _short(metric)
            axes.plot(*dots[metric], "o", color=colour, markeredgecolor=GUIDE, markersize=7, label=label)
    if band is not None:
        _shade(axes, band)
    axes.set(title=title, xlabel="step")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.18), ncols=3, handlelength=1.2)


def _curves(history: Log, metrics: Sequence[str]) -> dict[str, tuple[list[int], list[float]]]:
    return {name: points(history, name) for name in metrics}


def _dots(history: Log, metrics: Sequence[str]) -> dict[str, tuple[list[int], list[float]]]:
    return {name: ([], []) if name in TRAINING_ONLY else points(history, f"eval_{name}") for name in metrics}


def _short(metric: str) -> str:
    return metric.rpartition("/")[2].replace("_", " ")


def _shade(axes: Axes, band: Band) -> None:
    """Shade the band over the whole width, without making a much larger range of values visible than there are."""
    low, high = axes.get_ylim()
    span = high - low
    bottom = low - span if band.low is None else band.low
    top = high + span if band.high is None else band.high
    axes.axhspan(bottom, top, color=BAND_COLOUR, alpha=0.12, linewidth=0, zorder=0)
    # An edge of the band that is near is shown: it says how much room there is.
    near_low = low if band.low is None or band.low < low - span else min(low, band.low - 0.05 * span)
    near_high = high if band.high is None or band.high > high + span else max(high, band.high + 0.05 * span)
    axes.set_ylim(near_low, near_high)


def reward_over_kl(history: Log, judge: str | None) -> list[Figure]:
    """Draw the reward that is optimised over the KL, and a score that is not, on an axis of its own.

    Where the reward still rises and the other score falls, the policy exploits the reward (L. Gao et al., "Scaling
    Laws for Reward Model Overoptimization", 2022).

    Args:
        history: As `with_start` returns it.
        judge: The reward function of that other score, as TRL calls it; None where there is none.

    Returns:
        The figure, if the run has logged both KL and reward.
    """
    gold = f"rewards/{judge}/mean"
    series = {prefix: _over_kl(history, prefix, gold) for prefix in ("", "eval_")}
    if not any(series.values()):
        return []
    has_gold = any(row[2] is not None for rows in series.values() for row in rows)

    def plot(axes: Axes) -> None:
        sides = [(axes, 1, CHOSEN, "reward")]
        if has_gold:
            other = axes.twinx()
            other.spines["right"].set_visible(True)
            sides.append((other, 2, REJECTED, f"{judge} score"))
        for side, column, colour, label in sides:
            for prefix in ("", "eval_"):
                rows = [row for row in series[prefix] if row[column] is not None]
                size = 8 if prefix else 4
                side.plot(
                    [row[0] for row in rows],
                    [row[column] for row in rows],
                    "o",
                    color=colour,
                    alpha=1 if prefix else 0.55,
                    markersize=size,
                    markeredgecolor=GUIDE if prefix else colour,
                )
            side.set_ylabel(label, color=colour if has_gold else INK)
        axes.set(title="reward over KL", xlabel="KL to the start, nats per completion")

    caption = "Small dots: training batches. Large dots: held-out prompts, before and after."
    if has_gold:
        caption = (
            "The reward that is optimised (left) and one that training does not learn from (right). "
            "Where only the left one still rises, the policy exploits its reward. " + caption
        )
    held_out = "; ".join(f"KL {kl:.3g}: reward {reward:.3g}" for kl, reward, _ in series["eval_"])
    return [draw("reward_over_kl", plot, caption, f"Reward over KL. Held-out prompts: {held_out or 'none'}.")]


def _over_kl(history: Log, prefix: str, gold: str) -> list[tuple[float, float, float | None]]:
    """Return KL, reward and the other score of the entries that have the first two."""
    names = (f"{prefix}kl/k1", f"{prefix}reward")
    found = [entry for entry in history if all(entry.get(name) is not None for name in names)]
    return [(*(entry[name] for name in names), entry.get(f"{prefix}{gold}")) for entry in found]
