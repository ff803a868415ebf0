"""What a run leaves behind: a table on the console, a training figure, and metrics from before and after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import Trainer


def evaluate_before(trainer: Trainer) -> dict[str, float]:
    """Evaluate the policy before training, as `eval_*_before`.

    The policy starts as its own reference, so both completions of every pair have reward 0. TRL counts such a tie as
    wrong and would report an accuracy of 0; a model that cannot tell them apart is right half of the time.
    """
    metrics = trainer.evaluate()
    if metrics.get("eval_rewards/margins") == 0 and metrics.get("eval_rewards/accuracies") == 0:
        metrics["eval_rewards/accuracies"] = 0.5
    quality = {
        key: value for key, value in metrics.items() if not key.endswith(("runtime", "per_second", "num_tokens"))
    }
    return {f"{key}_before": value for key, value in quality.items() if key != "epoch"}


def print_before_and_after(
    before: Mapping[str, float], after: Mapping[str, float], names: Mapping[str, str], *, title: str
) -> None:
    """Print a table of the metrics in `names` (metric: what it is called), where both sides have them."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="right" if heading else "left")
    for metric, label in names.items():
        if metric in after and f"{metric}_before" in before:
            table.add_row(label, f"{before[f'{metric}_before']:.3f}", f"{after[metric]:.3f}")
    Console().print(table)


def save_training_figure(
    log_history: Sequence[Mapping[str, Any]],
    before: Mapping[str, float],
    panels: Mapping[str, Sequence[str]],
    path: str | Path,
) -> None:
    """Save a PNG with one panel per title, each with the curves of its metrics over steps.

    Args:
        log_history: `trainer.state.log_history`. A metric logged as `eval_NAME` is drawn as dots beside `NAME`.
        before: What `evaluate_before` returned: the dots at step 0, which the history does not have.
        panels: Panel titles, and the metrics each one shows.
        path: Where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")  # no window, also where there is a screen
    from matplotlib import pyplot

    start = {"step": 0} | {key.removesuffix("_before"): value for key, value in before.items()}
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), layout="constrained", squeeze=False)
    for axis, (title, metrics) in zip(axes[0], panels.items(), strict=True):
        for number, metric in enumerate(metrics):
            for name, style, label in ((metric, "-", metric), (f"eval_{metric}", "o", f"{metric} (held out)")):
                points = [(entry["step"], entry[name]) for entry in (start, *log_history) if name in entry]
                if points:
                    axis.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
