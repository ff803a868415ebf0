"""Reading rows to evaluate on: the kind is told by the columns, and refusals name file, row, column and fix."""

import csv
import json

import pytest
from datasets import Dataset, DatasetDict

from rlhf_ext.data_checks import DataError
from rlhf_ext.evaluation import rows as module
from rlhf_ext.evaluation.rows import (
    Pairs,
    RatedAnswers,
    demo_pairs,
    demo_ratings,
    inputs,
    load_rows,
    select,
    text_of,
)
from rlhf_ext.splits import keys

PAIR = {"prompt": "Boil an egg?", "chosen": "Use a pot.", "rejected": "No."}
RATED = {"prompt": "Boil an egg?", "response": "Use a pot.", "rating": 4}


def write(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def chat(role, content):
    return [{"role": role, "content": content}]


def test_pairs_with_strength_and_source(tmp_path):
    rows = [PAIR | {"strength": 2, "source": "web", "meta": {"a": 1}}, PAIR | {"strength": None, "source": None}]
    pairs = load_rows(write(tmp_path, rows))
    assert isinstance(pairs, Pairs)
    assert pairs.strengths == [2.0, None]
    assert pairs.subsets == ["web", "(none)"]
    assert inputs(pairs, pairs.chosen)[0] == ("Boil an egg?", "Use a pot.")


def test_columns_that_say_nothing_are_left_out(tmp_path):
    pairs = load_rows(write(tmp_path, [PAIR | {"strength": None, "source": None}]))
    assert pairs.strengths is None and pairs.subsets is None


def test_implicit_prompt(tmp_path):
    row = {"chosen": "Boil an egg? Use a pot.", "rejected": "Boil an egg? No."}
    pairs = load_rows(write(tmp_path, [row]))
    assert (pairs.prompts[0] + pairs.chosen[0], pairs.prompts[0] + pairs.rejected[0]) == tuple(row.values())
    assert pairs.prompts[0].startswith("Boil an egg?")


def test_conversations(tmp_path):
    row = {"prompt": chat("user", "Egg?"), "chosen": chat("assistant", "Pot."), "rejected": chat("assistant", "No.")}
    pairs = load_rows(write(tmp_path, [row]))
    assert inputs(pairs, pairs.chosen) == [chat("user", "Egg?") + chat("assistant", "Pot.")]
    assert text_of(pairs.prompts[0] + pairs.chosen[0]) == "Egg?\n\nPot."
    assert text_of([{"role": "user", "content": [{"type": "text", "text": "Egg?"}]}]) == "Egg?"
    implicit = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
    other = load_rows(write(tmp_path, [implicit]))
    assert other == pairs
    assert keys(other.prompts * 2)[0] == keys(pairs.prompts)[0]


def test_keywords_of_the_chat_template_come_along(tmp_path):
    """Training renders a row with them, so that without them another text would be scored."""
    pair = {"prompt": chat("user", "Egg?"), "chosen": chat("assistant", "Pot."), "rejected": chat("assistant", "No.")}
    styles = [{"chat_template_kwargs": {"style": style}} for style in ("brief", "long")]
    expected = [{"messages": chat("user", "Egg?") + chat("assistant", "No."), **style} for style in styles]
    pairs = load_rows(write(tmp_path, [pair | style for style in styles]))
    assert inputs(pairs, pairs.rejected) == expected
    rated_row = {"prompt": pair["prompt"], "response": pair["rejected"], "rating": 1}
    rated = load_rows(write(tmp_path, [rated_row | style for style in styles]))
    assert inputs(rated, rated.answers) == expected
    with pytest.raises(DataError, match="row 1, column 'chat_template_kwargs': it has no effect on plain text"):
        load_rows(write(tmp_path, [RATED | styles[0]]))


def test_rated_rows_by_either_name(tmp_path):
    rated = load_rows(write(tmp_path, [RATED, RATED | {"rating": 2.5}]))
    assert isinstance(rated, RatedAnswers)
    assert rated.ratings == [4.0, 2.5] and rated.answers[0] == "Use a pot."
    row = {"prompt": "Egg?", "completion": "Pot.", "rating": 1}
    assert load_rows(write(tmp_path, [row])).answers == ["Pot."]


def test_csv_holds_numbers_as_text(tmp_path):
    for row, column in ((PAIR | {"strength": "1.5", "source": "7"}, "strengths"), (RATED, "ratings")):
        path = tmp_path / "rows.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row)
        assert getattr(load_rows(str(path)), column) == [1.5 if column == "strengths" else 4.0]
    path.write_text("prompt,response,rating\na,b,good\n")
    with pytest.raises(DataError, match=r"row 1, column 'rating': 'good' is not a finite number"):
        load_rows(str(path))


def test_subset_may_be_nested(tmp_path):
    rows = [PAIR | {"meta": {"kind": "egg"}}, PAIR | {"meta": None}]
    assert load_rows(write(tmp_path, rows), subset_column="meta.kind").subsets == ["egg", "(none)"]


def test_max_samples_are_drawn_by_seed_in_order(tmp_path):
    path = write(tmp_path, [PAIR | {"strength": i} for i in range(30)])
    sampled = load_rows(path, max_samples=5, seed=1)
    assert sampled.numbers == [strength + 1 for strength in sampled.strengths]
    one, again, other = (load_rows(path, max_samples=5, seed=seed).strengths for seed in (1, 1, 2))
    assert one == again != other
    assert one == sorted(one) and len(one) == 5
    assert len(load_rows(path, max_samples=99).prompts) == 30


def test_selected_rows_keep_together(tmp_path):
    rows = [PAIR | {"prompt": f"Egg {i}?", "strength": i, "source": f"s{i}"} for i in range(5)]
    pairs = select(load_rows(write(tmp_path, rows)), [3, 1])
    assert (pairs.numbers, pairs.prompts, pairs.strengths) == ([4, 2], ["Egg 3?", "Egg 1?"], [3.0, 1.0])
    assert pairs.subsets == ["s3", "s1"] and len(pairs.chosen) == len(pairs.rejected) == 2
    assert select(load_rows(write(tmp_path, [PAIR, PAIR])), [0]).strengths is None


def test_hub_dataset_and_its_splits(monkeypatch):
    table = Dataset.from_list([PAIR | {"strength": 1.0}])
    monkeypatch.setattr(module, "load_from_hub", lambda name, config: DatasetDict(train=table, test=table))
    assert load_rows("some/name").source == "some/name, split test"
    assert load_rows("some/name", split="train").strengths == [1.0]
    with pytest.raises(DataError, match=r"there is no split 'dev'. It has: train, test"):
        load_rows("some/name", split="dev")
    monkeypatch.setattr(module, "load_from_hub", lambda name, config: DatasetDict(a=table, b=table))
    with pytest.raises(DataError, match=r"no 'test'. Choose one with --dataset_split: a, b"):
        load_rows("some/name")


def test_demo_pairs_are_rated_by_the_gold_judge():
    assert len(demo_pairs().prompts) == 1000
    pairs = demo_pairs(1200)
    rated = demo_ratings(pairs)
    count = len(pairs.prompts)
    assert len(rated.ratings) == 2 * count == 2400
    assert all(a > b for a, b in zip(rated.ratings[:count], rated.ratings[count:], strict=True))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "a"}], {}, ": it has the columns text. Preference rows have 'chosen' and 'rejected'"),
        ([{"chosen": "a"}], {}, ": it has the columns chosen. Preference rows"),
        ([{"prompt": "a", "response": "b"}], {}, ": there is no column 'rating'. Preference rows"),
        ([RATED | {"completion": "b"}], {}, ": it has both 'response' and 'completion'. Drop one"),
        ([{"prompt": "a", "rating": 1, "responses": "b"}], {}, "no column 'response'. Is it 'responses'?"),
        ([RATED, RATED | {"rating": None}], {}, ", row 2, column 'rating': it is missing here."),
        ([RATED, RATED | {"rating": float("nan")}], {}, ", row 2, column 'rating': nan is not a finite number."),
        ([RATED, RATED | {"response": " "}], {}, ", row 2, column 'response': it is empty."),
        ([RATED, RATED | {"prompt": None}], {}, ", row 2, column 'prompt': it is missing here."),
        ([RATED, RATED | {"prompt": chat("user", "a")}], {}, "row 2, column 'prompt': it is a list of messages, but"),
        ([PAIR, PAIR | {"chosen": "No."}], {}, ", row 2, column 'rejected': 'chosen' and 'rejected' are equal."),
        ([PAIR | {"strength": "high"}], {}, ", row 1, column 'strength': 'high' is not a finite number."),
        ([PAIR], {"strength_column": "s"}, ", column 's': no row has it. Name another --strength_column"),
        (
            [PAIR],
            {"subset_column": "s"},
            ", column 's': no row has it. Name another --subset_column or drop it; it has:",
        ),
        ([RATED], {"subset_column": "s"}, ": --subset_column has no effect on rated rows."),
        ([PAIR], {"split": "test"}, ": --dataset_split has no effect on a local file."),
        ([PAIR], {"config": "en"}, ": --dataset_config has no effect on a local file."),
        ([PAIR | {"tools": [{"name": "f"}]}], {}, ", column 'tools': it holds tools."),
    ],
)
def test_bad_rows_are_refused(rows, options, message, tmp_path):
    path = write(tmp_path, rows)
    with pytest.raises(DataError) as error:
        load_rows(path, **options)
    assert str(error.value).startswith(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
