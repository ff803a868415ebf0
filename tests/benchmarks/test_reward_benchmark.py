"""The benchmark of reward models: what it holds out, what it keeps of a prompt, and the floor."""

import json

import pytest


@pytest.fixture
def benchmark():
    import reward_human_preferences

    return reward_human_preferences


def write(path, prompts):
    rows = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in prompts]
    path.write_text("\n".join(map(json.dumps, rows)))
    return rows


def test_every_dialogue_is_held_out_once_and_whole(benchmark, tmp_path):
    source = tmp_path / "pref_x.jsonl"
    turns = [f"\n\nHuman: {number}\n\nAssistant:" for number in range(7)]
    rows = write(source, [*turns, *(f"{turn} well\n\nHuman: and?\n\nAssistant:" for turn in turns)])
    held_out = []
    for fold in range(5):
        parts = [benchmark.read(path) for path in benchmark.split_by_prompt(source, tmp_path, fold)]
        assert sorted(map(str, parts[0] + parts[1])) == sorted(map(str, rows))
        first_turns = [{row["prompt"].split("\n\nAssistant:")[0] for row in part} for part in parts]
        assert not first_turns[0] & first_turns[1]
        held_out += parts[1]
    assert sorted(map(str, held_out)) == sorted(map(str, rows))


def test_last_turns_of_dialogues_are_kept(benchmark):
    dialogue = "\n\nHuman: 1\n\nAssistant: 2\n\nHuman: 3\n\nAssistant: 4\n\nHuman: 5\n\nAssistant:"
    rows = [{"prompt": prompt, "chosen": "a"} for prompt in (dialogue, f"As said.{dialogue}", "Why?")]
    last_two = dialogue[dialogue.index("\n\nHuman: 3") :]
    for turns, kept in ((1, ["\n\nHuman: 5\n\nAssistant:"] * 2), (2, [last_two] * 2), (3, None), (None, None)):
        cut = benchmark.keep_last_turns(rows, turns)
        assert [row["prompt"] for row in cut[:2]] == (kept or [row["prompt"] for row in rows[:2]])
        assert cut[2] == rows[2]


def test_floor_learns_words_that_decide(benchmark):
    from bag_of_words import bag_of_words

    def pair(chosen, rejected):
        return {"prompt": "", "chosen": chosen, "rejected": rejected}

    train = [pair("Thank you, sir", "No sir"), pair("thank you", "no, no")] * 3
    wrong, right, cased, unknown = bag_of_words(
        train, [pair("No", "Thank"), pair("you", "no"), pair("THANK", "sir"), pair("unknown", "words")]
    )
    assert wrong < 0 < right
    assert cased > 0
    assert unknown == 0


def test_measures_are_those_of_all_folds(benchmark):
    runs = [{"differences": [1.0, -1.0, 2.0], "ece": 0.1}, {"differences": [-3.0], "ece": 0.3}]
    assert benchmark.of_all_splits(runs) == {
        "differences": [1, -1, 2, -3],
        "accuracy": 0.5,  # of the four pairs, not of the two folds
        "ece": pytest.approx(0.2),
    }


def test_floor_and_models_are_compared_on_the_same_rows(benchmark, tmp_path, monkeypatch, capsys):
    """A model that is right where the floor is, and once more."""
    prompts = [f"\n\nHuman: {number}\n\nAssistant:" for number in range(10)]
    write(tmp_path / "pref_x.jsonl", prompts)
    right = {prompt: float(number % 2) or -1.0 for number, prompt in enumerate(prompts)}
    floor = right | {prompts[3]: -1.0}
    monkeypatch.setattr(benchmark, "bag_of_words", lambda train, rows: [floor[row["prompt"]] for row in rows])
    monkeypatch.setattr(benchmark, "train", lambda arguments, split, loss, seed: split.folder)

    def evaluate(arguments, split, folder):
        return {"differences": [right[row["prompt"]] for row in split.held_out], "ece": 0.1}

    monkeypatch.setattr(benchmark, "evaluate", evaluate)
    options = ["--model", "m", "--data", str(tmp_path), "--output", str(tmp_path / "out"), "--preferences", "x"]
    options += ["--losses", "margin", "--seeds", "2", "--folds", "1", "0", "3", "4", "2"]
    monkeypatch.setattr(benchmark.sys, "argv", ["reward_human_preferences.py", *options])
    benchmark.main()
    output = capsys.readouterr().out
    assert "Bag of words: 0.400 of 10 held-out pairs." in output
    assert "| x | margin | 0.500 (0.500 to 0.500) | 0.100 (0.100 to 0.100) | 0.500 | 0.100 (" in output
