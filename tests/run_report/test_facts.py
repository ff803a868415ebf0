"""What a report says of command, data and time."""

import hashlib
import sys

import pytest

from rlhf_ext.run_report.facts import command_line, data_source, duration, script_facts


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--hub_token", "secret", "--seed", "1"], "--hub_token '***' --seed 1"),
        (["--hub_token=secret"], "'--hub_token=***'"),
        (["--hub-token", "secret", "x"], "--hub-token '***' x"),
        (["--hub-token=secret"], "'--hub-token=***'"),
        (["--api_key", "secret", "--wandb-api-key=secret"], "--api_key '***' '--wandb-api-key=***'"),
        (["--password", "secret", "--client_secret", "-s"], "--password '***' --client_secret '***'"),
        (["--token", "secret", "--eos_token", "<end>"], "--token '***' --eos_token '<end>'"),
        (["--max_tokens", "5", "--monkey", "5"], "--max_tokens 5 --monkey 5"),
        (["--note", "two words"], "--note 'two words'"),
    ],
)
def test_command_is_quoted_and_without_tokens(arguments, shown):
    assert command_line(["recipes/dpo.py", *arguments], {}, 1) == f"python recipes/dpo.py {shown}"


def test_command_names_the_launcher_and_a_script_as_one_would_type_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = str(tmp_path / "recipes/dpo.py")
    environment = {"ACCELERATE_MIXED_PRECISION": "no"}
    assert command_line([script], environment, 2) == "accelerate launch --num_processes 2 recipes/dpo.py"
    assert command_line(["/elsewhere/dpo.py"], {}, 1) == "python /elsewhere/dpo.py"


def test_a_local_file_is_named_with_its_hash(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n")
    assert data_source(str(path)) == f"{path}, SHA-256 {hashlib.sha256(b'{}' + bytes([10])).hexdigest()}"
    assert data_source("owner/name") == "owner/name" and data_source(None) == "the embedded demo"


def test_duration():
    assert [duration(s) for s in (0.4, 59.6, 61, 3725)] == ["0 s", "1 min 00 s", "1 min 01 s", "1 h 02 min"]


def test_runs_without_a_trainer_say_the_same(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n")
    monkeypatch.setattr(sys, "argv", ["recipes/evaluate.py", "--policy", "p"])
    facts = {fact.name: fact.value for fact in script_facts([None, str(path), None], seconds=61)}
    assert facts["command"].endswith("recipes/evaluate.py --policy p") and facts["time"] == "1 min 01 s"
    assert facts["data"].startswith(
        f"the embedded demo; {path}, SHA-256 ca3d163bab055381827226140568f3bef7eaac187cebd76878e"
    )
    assert "trl 1." in facts["versions"] and "cores" in facts["hardware"] and "GiB" in facts["peak memory"]
