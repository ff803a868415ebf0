"""`reward_model.json`: what is written is read back, and what is impossible is refused with the file's name."""

import json

import pytest

from rlhf_ext.reward_model.settings import RewardModelSettings


def test_settings_survive_the_file(tmp_path):
    settings = RewardModelSettings(0.1 + 0.2, 1.5, 256, {"load_in_8bit": True}, "float32")
    settings.save(tmp_path)
    assert RewardModelSettings.load(tmp_path) == settings


def test_folder_without_the_file_has_neutral_settings(tmp_path):
    assert RewardModelSettings.load(tmp_path) == RewardModelSettings(0.0, 1.0, None, None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "unknown entry"),
        ('{"offset": 1}', "unknown entry 'offset'. It may hold: score_offset"),
        ('{"temperature": 0}', "temperature must be a finite number above 0"),
        ('{"score_offset": NaN}', "score_offset must be a finite number"),
        ('{"score_offset": "1"}', "score_offset must be a finite number"),
        ('{"max_length": 0}', "max_length must be null or a whole number"),
        ('{"quantization": "8bit"}', "quantization must be null or"),
    ],
)
def test_impossible_settings_name_the_file(content, message, tmp_path):
    path = tmp_path / "reward_model.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="reward_model.json.*" + message):
        RewardModelSettings.load(tmp_path)


def test_file_is_plain_json(tmp_path):
    RewardModelSettings(score_offset=0.25).save(tmp_path)
    assert json.loads((tmp_path / "reward_model.json").read_text())["score_offset"] == 0.25
