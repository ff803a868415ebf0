"""What a run leaves behind: metrics from before and after, a table on the console, figures, model card and report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers import Trainer

from .arguments import DEMO, RecipeArguments
from .console import print_table
from .data_files import is_local
from .replaced import replaced
from .run_report.build import write_report
from .run_report.curves import plot_panel, with_start
from .run_report.samples import SampleCallback
from .trackers import begin_tracking, end_tracking


def save_run(
    trainer: Trainer,
    script_args: RecipeArguments,
    before: Mapping[str, float],
    train_metrics: Mapping[str, float],
    after: Mapping[str, float],
    *,
    metrics: Mapping[str, str],
    panels: Mapping[str, Sequence[str]],
    samples: SampleCallback | None = None,
    eval_rows: Any = None,
) -> None:
    """Save model, metrics, model card, figure and report of a finished run; print the table of before and after.

    Args:
        trainer: A TRL trainer.
        script_args: Where the data came from.
        before: What `evaluate_before` returned; empty where nothing was evaluated before.
        train_metrics: What `trainer.train()` returned as metrics.
        after: What `trainer.evaluate()` returned.
        metrics: The metrics of the table, and what to call them.
        panels: The panels of the figure, as in `save_training_figure`.
        samples: Completions before and after; without it the report shows those in `samples.jsonl`, if there are any.
        eval_rows: The held-out rows as they were loaded, for what the report says of a reward model.
    """
    args = trainer.args
    trainer.save_model()
    trainer.save_metrics("train", dict(train_metrics))
    trainer.save_metrics("eval", {**before, **after})
    trainer.save_state()
    rows = before_and_after(before, after, metrics)
    source = script_args.dataset_name
    hub_dataset = None if source is None or is_local(source) else source
    save_model_card(trainer, hub_dataset, rows)
    if trainer.is_world_process_zero():
        save_training_figure(trainer.state.log_history, before, panels, f"{args.output_dir}/training.png")
        kept = {"rows": rows, "panels": panels, "samples": samples, "eval_rows": eval_rows}
        write_report(trainer, script_args, before, train_metrics, after, **kept)
        title = f"Held-out rows of {script_args.eval_dataset_name or source or DEMO}"
        print_table(title, ("", "before", "after"), rows)
        print(f"Model, all_results.json and model card: {args.output_dir}")
        print(f"Report: {args.output_dir}/report.html")
    if args.push_to_hub:
        push_to_hub(trainer)
    # Together: a process that leaves while another still saves would keep that one waiting for it at exit.
    trainer.accelerator.wait_for_everyone()
    end_tracking(trainer)
    trainer.accelerator.end_training()


def evaluate_before(trainer: Trainer, *, policy_is_reference: bool = False) -> dict[str, float]:
    """Evaluate before training, as `eval_*_before`; nothing under DeepSpeed and FSDP2.

    Args:
        trainer: A TRL trainer.
        policy_is_reference: Whether the policy starts as its own reference, as in DPO. Both completions of every pair
            then have reward 0, but for rounding. TRL counts a tie as wrong, and rounding would decide the others; a
            model that cannot tell them apart is right half of the time, and that is what is reported.
    """
    begin_tracking(trainer)
    if trainer.is_deepspeed_enabled or trainer.accelerator.is_fsdp2:  # which prepare a model with its optimizer alone
        return {}
    metrics = trainer.evaluate()
    if policy_is_reference:
        metrics["eval_rewards/accuracies"] = 0.5
    quality = {
        key: value for key, value in metrics.items() if not key.endswith(("runtime", "per_second", "num_tokens"))
    }
    return {f"{key}_before": value for key, value in quality.items() if key != "epoch"}


def before_and_after(
    before: Mapping[str, float], after: Mapping[str, float], names: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Return label, value before and value after of each metric in `names` (metric: label) that both sides have."""
    common = [metric for metric in names if metric in after and f"{metric}_before" in before]
    return [(names[metric], f"{before[f'{metric}_before']:.3f}", f"{after[metric]:.3f}") for metric in common]


def save_training_figure(
    log_history: Sequence[Mapping[str, Any]],
    before: Mapping[str, float],
    panels: Mapping[str, Sequence[str]],
    path: str | Path,
) -> None:
    """Save a PNG with the panels of the report side by side.

    Args:
        log_history: `trainer.state.log_history`. A metric logged as `eval_NAME` is drawn as dots beside `NAME`.
        before: What `evaluate_before` returned: the dots at step 0, which the history does not have.
        panels: Panel titles, and the metrics each one shows.
        path: Where the PNG goes.
    """
    figure = Figure(figsize=(4 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, metrics) in zip(axes, panels.items(), strict=True):
        plot_panel(axis, with_start(log_history, before), title, metrics)
    figure.suptitle("lines: training batches, dots: held-out rows", fontsize="small")
    figure.savefig(path, dpi=150)


def save_model_card(trainer: Trainer, dataset_name: str | None, rows: Sequence[tuple[str, str, str]]) -> None:
    """Save TRL's model card with the results added, and with local models and files named as what they are.

    Args:
        trainer: A TRL trainer.
        dataset_name: The dataset's name on the Hub, if it is there.
        rows: Label, value before and value after, as `before_and_after` returns them.
    """
    trainer.create_model_card(model_name=Path(trainer.args.output_dir).name, dataset_name=dataset_name)
    if not trainer.is_world_process_zero():
        return
    path = Path(trainer.args.output_dir) / "README.md"
    # TRL writes a link to "None" where the base model is a local folder.
    text = path.read_text(encoding="utf-8").replace(
        "[None](https://huggingface.co/None)", f"`{Path(trainer.model.config._name_or_path).name}`, a local model"
    )
    text = text.replace('model="None"', f'model="{trainer.args.output_dir}"')
    table = ["| held-out rows | before | after |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    results = "\n".join(["## Results", "", *table, "", "## Training procedure"])
    path.write_text(text.replace("## Training procedure", results, 1), encoding="utf-8")


def push_to_hub(trainer: Trainer) -> None:
    """Upload the run's folder with the model card that lies there, over which Transformers would write another."""
    with replaced(trainer, create_model_card=lambda **_: None):
        trainer.push_to_hub()
