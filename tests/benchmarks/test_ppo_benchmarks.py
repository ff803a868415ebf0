"""The PPO benchmarks run, at a tiny size, and what they report adds up."""

import json
import sys

import pytest
from transformers import GenerationMixin

PHASES = ("generation", "scoring", "optimisation")


@pytest.fixture(autouse=True)
def clocks_go(monkeypatch):
    monkeypatch.setattr(GenerationMixin, "generate", GenerationMixin.generate)  # what a clock puts there is taken away


class EndOfTurns(Exception):
    """Stands for the end of the process."""


class Turns:
    """Standard input with a few lines."""

    def __init__(self, lines):
        self.lines = lines

    def readline(self):
        if not self.lines:
            raise EndOfTurns
        self.lines -= 1
        return "\n"


@pytest.mark.parametrize(("reward", "copies"), [("adapter", 1), ("model", 2)])
def test_a_side_reports_versions_weights_and_seconds(reward, copies, tmp_path, monkeypatch, capsys):
    import ppo_vs_trl_1_12_side as side

    monkeypatch.setattr(side, "VOCABULARY", 64)
    side.write_models(tmp_path, layers=1, hidden_size=16)
    monkeypatch.setattr(sys, "stdin", Turns(3))
    settings = {"side": "head", "folder": str(tmp_path), "epochs": 2, "new_tokens": 4, "reward": reward, "merge": True}
    # The side counts models in a process of its own; here other tests' may not be collected yet.
    models, others = side.backbones, set(map(id, side.backbones()))
    monkeypatch.setattr(side, "backbones", lambda: [model for model in models() if id(model) not in others])
    with pytest.raises(EndOfTurns):
        side.main(settings)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("REPORT ")]
    versions, weights, *updates = [json.loads(line.removeprefix("REPORT ")) for line in lines]
    assert set(versions) == {"torch", "transformers", "trl", "threads"}
    assert weights["full_model_copies"] == copies
    assert len(updates) == 2
    for update in updates:
        assert all(update[phase] > 0 for phase in PHASES)
        assert sum(update[phase] for phase in PHASES) == pytest.approx(update["total"], abs=1e-3)


def test_sides_take_turns_and_are_compared_with_trl(monkeypatch):
    import ppo_vs_trl_1_12 as benchmark

    turns = []

    class Side:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, iter(seconds)

        def take_turn(self):
            turns.append(self.name)
            return {"total": next(self.seconds)}

    updates = benchmark.measure_time([Side("trl_1_12", [9, 2, 4]), Side("head", [9, 1, 2])], rounds=2)
    assert turns == ["head", "trl_1_12", "trl_1_12", "head", "head", "trl_1_12"]
    assert updates == {"trl_1_12": [{"total": 2}, {"total": 4}], "head": [{"total": 1}, {"total": 2}]}
    sides = {
        name: {
            "seconds_per_update_1_epochs": {"total": benchmark.summary([update["total"] for update in measured])},
            "peak_mib_above_import": benchmark.summary(peaks),
        }
        for (name, measured), peaks in zip(updates.items(), ([200.0, 210.0], [50.0, 52.5]), strict=True)
    }
    assert sides["head"]["peak_mib_above_import"] == {"median": 51.25, "range": [50.0, 52.5]}
    assert benchmark.compare(sides) == {
        "seconds_per_update_1_epochs": {"trl_1_12": 1.0, "head": 2.0},
        "peak_mib_above_import": {"trl_1_12": 1.0, "head": 0.25},
    }


def test_learning_measures_the_part_of_the_optimum():
    import ppo_learning as benchmark

    target, other = benchmark.TARGET, benchmark.TARGET + 1
    assert benchmark.part_of_places([[target] * 16, [target, other, target, 1], []]) == [1.0, 0.125, 0.0]
    runs = [benchmark.run(side, updates=4, learning_rate=1e-2, seed=0) for side in ("head", "rloo", "plain")]
    for run in runs:
        assert run["generated_tokens"] == 4 * 32 * 16
        assert all(0 <= part < 0.3 for part in (run["optimum_reached"], *run["mean_reward_by_quarter"]))
    header, _, *rows = benchmark.table(runs).splitlines()
    assert [row.count("|") for row in rows] == [header.count("|")] * 3
    assert rows[0].startswith("| head | 0.01 | 1 |")


def test_memory_on_one_quantized_backbone(monkeypatch, capsys):
    import gpu_ppo_memory as benchmark

    sizes = ["--size", "tiny", "--prompt_tokens", "8", "--new_tokens", "4", "--batch_size", "2", "--updates", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu_ppo_memory.py", "--device", "cpu", *sizes])
    benchmark.main()
    output = capsys.readouterr().out
    result = json.loads(output[output.index("{") :])
    seconds = result["seconds_per_update"]
    assert sum(seconds[phase] for phase in PHASES) == pytest.approx(seconds["total"], abs=5e-3)
    assert result["generated_tokens_per_second"] == pytest.approx(8 / seconds["generation"], rel=0.05)
    assert 0 < result["gib_when_loaded"]["resident"] <= result["peak_gib"]["resident"]


def test_limit_of_a_gpu_is_refused_on_a_cpu(monkeypatch, capsys):
    import gpu_ppo_memory as benchmark

    monkeypatch.setattr(sys, "argv", ["gpu_ppo_memory.py", "--device", "cpu", "--size", "tiny", "--limit_gib", "22"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--limit_gib is for a GPU." in capsys.readouterr().err
