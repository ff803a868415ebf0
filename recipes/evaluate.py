"""How good is a reward model, or a policy? Numbers with intervals, figures and one page; or two of a kind compared.

With no arguments it evaluates the newest model of recipes/reward.py, or one it trains, on the embedded demo, offline:

    python recipes/evaluate.py

Your reward model on your data, against another one; and your policy on your prompts, against the one it began as:

    python recipes/evaluate.py --model runs/reward --other_model runs/reward-2 --dataset_name pairs.jsonl
    python recipes/evaluate.py --policy runs/dpo --other_policy runs/sft --judge runs/reward --dataset_name p.jsonl

The data of reward models are preference rows (chosen and rejected, with or without a prompt; optional strength and
source) or rated rows (prompt, response, rating); the columns tell which. Policies need prompts. See docs/evaluation.md
for what is measured and how.
"""

from rlhf_ext.console import print_table, quiet_libraries

quiet_libraries()

import json
import os
from dataclasses import asdict
from pathlib import Path

from rlhf_ext.arguments import ArgumentError, parse_options
from rlhf_ext.chatbot.pipeline import LAUNCHED
from rlhf_ext.constitutional.ai_feedback import ChoiceError
from rlhf_ext.data_checks import DataError
from rlhf_ext.data_files import is_local
from rlhf_ext.errors import one_line_errors
from rlhf_ext.evaluation.judges import JudgeError
from rlhf_ext.evaluation.options import OUTPUT_DIR, EvaluationOptions, PolicyOptions, RewardOptions, refuse_all
from rlhf_ext.evaluation.page import WARNINGS, Section, render, warnings_section
from rlhf_ext.evaluation.policy_run import evaluate_policies
from rlhf_ext.evaluation.report import Evaluation
from rlhf_ext.evaluation.reward_run import evaluate_reward_models
from rlhf_ext.evaluation.statistics import MetricError
from rlhf_ext.formatting import InputError
from rlhf_ext.output_files import write_jsonl, write_whole
from rlhf_ext.plugins import PluginError
from rlhf_ext.reward_model.loading import RewardModelError
from rlhf_ext.run_folder import free_output_dir
from rlhf_ext.run_report.facts import script_facts
from rlhf_ext.threads import use_all_cores

OPTIONS = (EvaluationOptions, RewardOptions, PolicyOptions)
ERRORS = (
    ArgumentError,
    ChoiceError,
    DataError,
    InputError,
    JudgeError,
    MetricError,
    PluginError,
    RewardModelError,
)


def main(data: EvaluationOptions, reward: RewardOptions, policy: PolicyOptions) -> None:
    """Check everything, then evaluate policies if one is named, else reward models."""
    if int(os.environ.get("RANK", "0")) > 0:  # the work is not spread over processes
        return
    for name in LAUNCHED:
        os.environ.pop(name, None)  # and the first one must not wait for the others
    is_policy = policy.policy is not None
    refuse_all(reward if is_policy else policy, "with --policy" if is_policy else "without --policy")
    output_dir = Path(free_output_dir(data.output_dir, OUTPUT_DIR))
    save(evaluate_policies(data, policy, output_dir) if is_policy else evaluate_reward_models(data, reward), output_dir)


def save(evaluation: Evaluation, output_dir: Path) -> None:
    """Write results, figures and page, and print the table."""
    reports, names = evaluation.reports, evaluation.names
    source = Path(evaluation.source).name if is_local(evaluation.source) else evaluation.source
    output_dir.mkdir(parents=True, exist_ok=True)
    metrics = {name: value for report in reports for name, value in report.metrics.items()}
    sections = [section for report in reports for section in report.sections]
    for section in sections:
        for figure in section.figures:
            (output_dir / f"{figure.name}.png").write_bytes(figure.png)
    headlines = [headline for report in reports for headline in report.headlines]
    notes = list(dict.fromkeys(note for report in reports for note in report.notes))
    notices = [notice for report in reports for notice in report.notices]
    write_jsonl(output_dir / WARNINGS, map(asdict, notices))
    sections = [warnings_section(notices), *sections, Section("What ran", facts=script_facts([evaluation.source]))]
    page = render(evaluation.title, " ".join([f"Evaluated on {source}.", *notes]), headlines, sections)
    write_whole(output_dir / "report.html", page)
    # Last: what marks the run as finished.
    write_whole(output_dir / "all_results.json", json.dumps(metrics, indent=4, sort_keys=True))

    print_table(f"{evaluation.title} on {source}", ("", *names), (row for report in reports for row in report.table))
    for note in notes:
        print(note)
    written = sorted(path.name for path in output_dir.iterdir() if path.suffix in (".html", ".json", ".jsonl", ".png"))
    print(f"{', '.join(written)}: {output_dir}")


if __name__ == "__main__":
    use_all_cores()
    with one_line_errors(*ERRORS, kept="Nothing was lost but time: give the same command again."):
        main(*parse_options(OPTIONS, {}))
