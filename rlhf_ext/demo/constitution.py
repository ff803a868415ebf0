"""Constitutional AI in the demo world: its principles, worked examples of judging by them, a model taught with these.

A large model learns how to criticise, revise and compare from a few examples in its prompt, or can do it already. The
demo model has 1.7 million parameters and learns nothing from a prompt, so it is shown its examples by fine-tuning.
They follow from what a response is like by the rules below; neither people's labels nor the gold judge are used.
"""

import random
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_ext.constitutional.constitution import CHOICES, Constitution, Principle, Templates
from rlhf_ext.demo.judge import judge
from rlhf_ext.demo.topics import Topic
from rlhf_ext.demo.world import (
    Attributes,
    Prompt,
    draw_attributes,
    draw_good_attributes,
    draw_prompt,
    write_response,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset

    from rlhf_ext.constitutional.self_revision import Reviser, Transcript

# Short, and in words that the demo model has tokens for.
CONSTITUTION = Constitution(
    (
        Principle(
            "harmless",
            critique_request="Could this response hurt somebody?",
            revision_request="Please write it so that nobody is hurt.",
            comparison="Which one does less harm?",
        ),
        Principle(
            "kind",
            critique_request="What would a kind person change about this?",
            revision_request="Please write it like a kind person.",
            comparison="Which one is kind?",
        ),
        Principle(
            "useful",
            critique_request="Does this help with something good?",
            revision_request="Please write it so that it helps with something good.",
            comparison="Which one helps with something good?",
        ),
    ),
    Templates(
        critique="{request} {conversation}",
        revision="{request} {conversation}",
        comparison="{conversation} (A) {response_a} (B) {response_b} {question}",
    ),
)
EXAMPLES = {"revision": 1500, "comparison": 200}  # what a minute on two cores allows
UNSAFE_SHARE = 0.4  # more than the world has, since most of what there is to learn is about these
SMALLEST_GAP = 1.0


def critique(prompt: Prompt, attributes: Attributes, subject: str = "It") -> str:
    """Return what there is to say against a response with these attributes: its worst flaw, and what to do instead."""
    advice = "refuse to" if prompt.topic.unsafe else "help to"
    return f"{subject} {_flaw(prompt, attributes) or 'is good'}. I should {advice} {prompt.task}."


def _flaw(prompt: Prompt, attributes: Attributes) -> str | None:
    """Return the worst flaw of a response; None if it has none."""
    if prompt.topic.unsafe and attributes.steps:
        return "could hurt somebody"
    if attributes.rude:
        return "is not kind"
    if prompt.topic.unsafe:
        if not attributes.refusal:
            return "does not refuse to help"
        return None if attributes.alternative else "does not offer something else"
    if attributes.refusal:
        return "does not help, but nobody is hurt"
    if attributes.steps and not attributes.on_topic:
        return "is about something else"
    return "does not say enough" if attributes.steps < 3 or attributes.evasive else None


def quality(topic: Topic, attributes: Attributes) -> float:
    """Return how much there is to say for a response with these attributes; a point is a clear difference."""
    if topic.unsafe:
        reaction = 1.0 * attributes.refusal - 2.0 * bool(attributes.steps)
        return reaction + 0.5 * attributes.reason + 0.5 * attributes.alternative - attributes.rude
    useful = 0.7 * attributes.steps if attributes.on_topic else -0.5
    return useful - 1.5 * attributes.refusal - 0.5 * attributes.evasive - attributes.rude


def revision_dataset(seed: int = 0, size: int = EXAMPLES["revision"]) -> "Dataset":
    """Worked examples of a critique and the revision that follows from it, with the column messages.

    The first response is one that the untuned assistant would give, or now and then a good one.
    """
    rng = random.Random(f"revisions {seed}")
    rows = []
    for _ in range(size):
        prompt, principle = _draw_prompt(rng), rng.choice(CONSTITUTION.principles)
        attributes = _draw_attributes(prompt.topic, rng)
        first, fault = write_response(prompt, attributes, rng), critique(prompt, attributes)
        revised = write_response(prompt, draw_good_attributes(prompt.topic, rng), rng)
        asked = CONSTITUTION.revision(_user(prompt.text), first, principle, fault)
        rows.append({"messages": [*asked, {"role": "assistant", "content": revised}]})
    return _dataset(rows)


def comparison_dataset(seed: int = 0, size: int = EXAMPLES["comparison"]) -> "Dataset":
    """Worked examples of a choice between two responses, with the column messages.

    The letter comes first, where its probability is read. What is said against the other response comes after it, and
    teaches what to look for: a letter alone is one bit a row.
    """
    rng = random.Random(f"comparisons {seed}")
    rows = []
    while len(rows) < size:
        prompt, principle = _draw_prompt(rng), rng.choice(CONSTITUTION.principles)
        pair = [_draw_attributes(prompt.topic, rng) for _ in range(2)]
        gap = quality(prompt.topic, pair[0]) - quality(prompt.topic, pair[1])
        if abs(gap) < SMALLEST_GAP:
            continue
        texts = [write_response(prompt, attributes, rng) for attributes in pair]
        letters = CHOICES if gap > 0 else CHOICES[::-1]
        reply = f"{letters[0]}. {critique(prompt, pair[gap > 0], f'({letters[1]})')}"
        asked = CONSTITUTION.comparison(_user(prompt.text), *texts, principle)
        rows.append({"messages": [*asked, {"role": "assistant", "content": reply}]})
    return _dataset(rows)


def demo_reviser(
    folder: str | Path, *, seed: int, examples: "Mapping[str, int]" = EXAMPLES, show_progress: bool = True
) -> None:
    """Fine-tune a copy of the demo model on worked examples and save it in `folder`, unless it is there already.

    Args:
        folder: Where the reviser is, or will be.
        seed: Of examples and training.
        examples: How many of each kind.
        show_progress: Show a progress bar.
    """
    import torch
    from datasets import concatenate_datasets
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from rlhf_ext.demo import model_path
    from rlhf_ext.progress import show_short_progress

    folder = Path(folder)
    if (folder / "config.json").is_file():
        return
    part = folder.with_name(f"{folder.name}.part")
    args = SFTConfig(
        str(part),
        seed=seed,
        learning_rate=1.5e-3,
        lr_scheduler_type="cosine",
        warmup_steps=15,
        adam_beta2=0.98,
        num_train_epochs=1,
        per_device_train_batch_size=8,
        train_sampling_strategy="group_by_length",
        assistant_only_loss=True,
        max_length=512,
        use_cpu=not torch.accelerator.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=not show_progress,
        logging_steps=50,
    )
    rows = [revision_dataset(seed, examples["revision"]), comparison_dataset(seed, examples["comparison"])]
    trainer = SFTTrainer(model_path(), args, train_dataset=concatenate_datasets(rows))
    trainer.remove_callback(PrinterCallback)  # which prints where there is no progress bar
    if show_progress:
        show_short_progress(trainer, ("loss",))
        print("Teaching the demo model to criticise, revise and compare, with worked examples; once.")
    trainer.train()
    trainer.save_model()
    part.replace(folder)  # at once: a folder that is there is complete


def gold_metrics(reviser: "Reviser", transcripts: "Sequence[Transcript]", held_out: int) -> dict[str, float]:
    """Measure, with the gold judge, what nothing here has learned from.

    Returns:
        eval_gold/helpfulness and eval_gold/safety of the last revisions of answers to held-out prompts, with `_before`
        those of the first answers; and feedback_gold_agreement, how often the model and the judge prefer the same one
        of two sampled answers.
    """
    from rlhf_ext.demo.data import prompt_dataset
    from rlhf_ext.demo.gold import gold_scores

    prompts = prompt_dataset("test", size=held_out)["prompt"][:]
    first = reviser.answer(prompts, "held out")
    last = [rounds[-1]["revision"] for rounds in reviser.revise(prompts, first, "held out")]
    before, after = gold_scores(prompts, first), gold_scores(prompts, last)
    metrics = {}
    for name in ("helpfulness", "safety"):
        metrics |= {f"eval_gold/{name}_before": before[name], f"eval_gold/{name}": after[name]}
    same = []
    for transcript in transcripts:
        text, answers = transcript["prompt"][-1]["content"], transcript["answers"]
        gap = judge(text, answers[0]).overall - judge(text, answers[1]).overall
        if transcript["feedback"] and gap:
            same.append((transcript["feedback"]["probability"] > 0.5) == (gap > 0))
    return metrics | ({"feedback_gold_agreement": sum(same) / len(same)} if same else {})


def _draw_prompt(rng: random.Random) -> Prompt:
    unsafe = rng.random() < UNSAFE_SHARE
    while (prompt := draw_prompt("train", rng)).topic.unsafe != unsafe:
        pass
    return prompt


def _draw_attributes(topic: Topic, rng: random.Random) -> Attributes:
    if rng.random() < 0.15:
        return draw_good_attributes(topic, rng)
    return draw_attributes(topic, rng)


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _dataset(rows: list[dict]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_list(rows)
