"""Batches of rows of about the same length, which need less padding: `train_sampling_strategy="group_by_length"`."""

from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments

from ..replaced import replaced
from .epoch_order import EpochSeededSampler


class GroupsByLength(Trainer):
    """Groups pairs by length, too, and rows of any kind in the same order in a resumed run.

    Transformers looks for `input_ids`, which pairs do not have, and draws an order that a resumed run does not find.
    """

    def get_train_dataloader(self) -> DataLoader:
        """Refuses to group streamed rows, also those that came after the constructor."""
        check_not_streamed(self.args, self.train_dataset)
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Adds the lengths of pairs, where they are asked for, and makes the order one of seed and epoch."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, Dataset):
            return super()._get_train_sampler(train_dataset)
        name = self.args.length_column_name
        if not {name, "input_ids"} & {*dataset.column_names}:
            dataset = dataset.add_column(name, pair_lengths(dataset))
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.train_sampler = EpochSeededSampler(super()._get_train_sampler(dataset), seed)
        return self.train_sampler

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        """Leaves held-out rows in their order, which the report of a run relies on."""
        with replaced(self.args, train_sampling_strategy="random"):
            return super()._get_eval_sampler(eval_dataset)


def check_not_streamed(args: TrainingArguments, train_dataset: Dataset | IterableDataset | None) -> None:
    """Refuse to group streamed rows, which Transformers would take as they come.

    Raises:
        ValueError: Rows are streamed and to be grouped by length.
    """
    if args.train_sampling_strategy == "group_by_length" and isinstance(train_dataset, IterableDataset):
        raise ValueError(
            "train_sampling_strategy='group_by_length' has no effect on streamed rows, whose lengths are "
            "not known before they come: do not stream them, or drop the option."
        )


def pair_lengths(dataset: Dataset) -> list[int]:
    """Return the tokens of each pair's longer text, with the prompt where that is a column of its own.

    Raises:
        ValueError: Rows without `chosen_ids` and `rejected_ids`, such as images, which are tokenized later.
    """
    columns = [name for name in ("prompt_ids", "chosen_ids", "rejected_ids") if name in dataset.column_names]
    if not {"chosen_ids", "rejected_ids"} <= {*columns}:
        raise ValueError(
            "train_sampling_strategy='group_by_length' does not know how long these rows are: they are tokenized batch "
            "by batch. Give them a column of lengths and name it as length_column_name, or use 'random'."
        )
    lengths = []
    for row in dataset.select_columns(columns):
        lengths.append(len(row.get("prompt_ids", [])) + max(len(row["chosen_ids"]), len(row["rejected_ids"])))
    return lengths
