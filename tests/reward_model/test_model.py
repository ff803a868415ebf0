"""Scores that depend on the text alone, survive saving, and errors that say what to do."""

import json
import math
import warnings

import forked
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from rlhf_ext import RewardModel, RewardModelEnsemble
from rlhf_ext.formatting import InputError
from rlhf_ext.reward_model.loading import RewardModelError
from rlhf_ext.reward_model.scoring import run_batches
from rlhf_ext.reward_model.settings import RewardModelSettings
from rlhf_ext.reward_model.text_scorer import TruncationWarning
from rlhf_ext.trainers.reward_head import keep_in_float32

QUESTION = [{"role": "user", "content": "How do I boil an egg?"}]
TEXTS = [
    "Hello.",
    "How do I boil an egg? Use a pot of water, and wait for some minutes until it is done.",
    ("How do I boil an egg?", " Ask somebody else."),
    [*QUESTION, {"role": "assistant", "content": "In a pot."}],
    ("How do I boil an egg?", " Use a pot."),
    "A sentence of medium length, which is neither the longest nor the shortest.",
]
QUANTIZED = {
    8: {"load_in_8bit": True},
    4: {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.bfloat16,
        "bnb_4bit_use_double_quant": True,
    },
}


@pytest.fixture(scope="module")
def reward_model(reward_folder):
    return RewardModel.from_pretrained(reward_folder)


@pytest.fixture
def fresh(reward_folder, tokenizer):
    """A function that loads the reward model's bare Transformers model."""

    def load(**options):
        options = {"num_labels": 1, "dtype": torch.float32} | options
        return AutoModelForSequenceClassification.from_pretrained(reward_folder, **options)

    return load


def with_lora(model):
    """With adapters in bfloat16 over a quantized base, as TRL leaves them, and the head in float32, as we do."""
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS"))
    head = model.base_model.model.score.modules_to_save["default"]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
        if parameter.requires_grad and getattr(model.config, "quantization_config", None):
            parameter.data = parameter.data.to(torch.bfloat16)
    keep_in_float32(head)
    torch.nn.init.normal_(head.weight, std=0.2)
    return model


def one_by_one(model, tokenizer, texts):
    """The independent reference: one unpadded text at a time, the head applied by hand to the last hidden state."""
    scores = []
    for text in texts:
        if isinstance(text, list):
            ids = tokenizer.apply_chat_template(text, tokenize=True, return_dict=True)["input_ids"]
        else:
            ids = tokenizer("".join(text) + tokenizer.eos_token)["input_ids"]
        with torch.no_grad():
            scores.append(model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1]).item())
    return scores


def test_one_input_gives_a_float_and_a_list_gives_a_list(reward_model):
    for text in (*TEXTS, {"prompt": "a", "completion": "b"}):
        assert type(reward_model.score(text)) is float
        assert reward_model.score([text]) == [reward_model.score(text)]
        tensor = reward_model.score(text, return_tensors=True)
        assert tensor.shape == (1,) and tensor.dtype == torch.float32
    scores = reward_model.score(TEXTS)
    assert type(scores) is list and all(type(score) is float for score in scores)
    assert reward_model.score(TEXTS, return_tensors=True).tolist() == scores


def test_scores_equal_the_reference_in_the_order_given(reward_model, tokenizer):
    expected = one_by_one(reward_model.model, tokenizer, TEXTS)
    assert max(expected) - min(expected) > 0.5  # else nothing would be shown
    assert reward_model.score(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert reward_model.score(TEXTS[::-1]) == pytest.approx(expected[::-1], abs=1e-5)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 100])
@pytest.mark.parametrize("token_budget", [1, 64, 4096])
def test_batch_composition_never_changes_a_score(batch_size, token_budget, reward_model, fresh, tokenizer):
    expected = reward_model.score(TEXTS)
    other = RewardModel(fresh(), tokenizer, token_budget=token_budget)
    assert other.score(TEXTS * 3, batch_size=batch_size) == pytest.approx(expected * 3, abs=1e-5)


def test_batch_composition_never_changes_a_score_over_8_bit_weights(model_name, tokenizer, caplog):
    """Where numbers are large, as in the demo model, bitsandbytes rounds a text by what else is in the batch."""
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    base = AutoModelForSequenceClassification.from_pretrained(
        model_name, num_labels=1, dtype=torch.float32, quantization_config=quantization
    )
    model = RewardModel(with_lora(base), tokenizer)
    alone = [model.score(text) for text in TEXTS]
    assert model.score(TEXTS) == alone
    together = model.score(TEXTS, batch_size=6)  # asked for, and faster
    assert together != alone and together == pytest.approx(alone, abs=0.1)
    assert "will be cast" not in caplog.text  # bitsandbytes says so of every layer in every pass


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 5e-4), (torch.bfloat16, 0.3)], ids=["float32", "bfloat16"]
)
def test_batch_composition_over_4_bit_weights_matters_as_much_as_the_arithmetic(
    dtype, tolerance, model_name, tokenizer
):
    """Unlike 8 bit, which rounds a text by the numbers of the others, 4 bit is plain arithmetic in its dtype.

    The adapters are bfloat16, though, so that the last digit of a float32 number may turn one of their inputs by 1/256.
    """
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
    base = AutoModelForSequenceClassification.from_pretrained(
        model_name, num_labels=1, dtype=dtype, quantization_config=quantization
    )
    model = RewardModel(with_lora(base), tokenizer)
    alone = [model.score(text) for text in TEXTS]
    assert model.score(TEXTS, batch_size=1) == alone
    assert model.score(TEXTS) == pytest.approx(alone, abs=tolerance)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad_token", ["<|pad|>", "<|end|>"])
def test_padding_side_and_token_never_change_a_score(side, pad_token, reward_model, fresh, model_name):
    tokenizer = AutoTokenizer.from_pretrained(model_name, padding_side=side, pad_token=pad_token)
    model = fresh()
    model.config.pad_token_id = tokenizer.pad_token_id
    assert RewardModel(model, tokenizer).score(TEXTS) == pytest.approx(reward_model.score(TEXTS), abs=1e-5)


def test_model_and_tokenizer_without_padding_token(reward_model, fresh, model_name):
    tokenizer, model = AutoTokenizer.from_pretrained(model_name, pad_token=None), fresh()
    assert tokenizer.pad_token is None
    model.config.pad_token_id = None
    assert RewardModel(model, tokenizer).score(TEXTS) == pytest.approx(reward_model.score(TEXTS), abs=1e-5)


def test_training_mode_is_left_for_scoring_and_restored(fresh, tokenizer, reward_model):
    model = fresh(attention_dropout=0.5).train()
    assert RewardModel(model, tokenizer).score(TEXTS) == pytest.approx(reward_model.score(TEXTS), abs=1e-5)
    assert model.training


def test_score_offset_is_subtracted_and_temperature_scales_the_probability(fresh, tokenizer, reward_model):
    settings = RewardModelSettings(score_offset=0.75, temperature=2.0)
    centered = RewardModel(fresh(), tokenizer, settings=settings)
    raw = reward_model.score(TEXTS)
    assert centered.score(TEXTS) == pytest.approx([score - 0.75 for score in raw], abs=1e-5)
    compared = centered.compare(TEXTS[0], TEXTS[1])
    expected = 1 / (1 + math.exp(-(raw[0] - raw[1]) / 2.0))
    assert compared["probability"] == pytest.approx(expected, abs=1e-5)


def test_compare_returns_what_the_design_says(reward_model):
    low, high = sorted(TEXTS, key=reward_model.score)[:: len(TEXTS) - 1]
    compared = reward_model.compare(low, high)
    assert set(compared) == {"preference", "confidence", "score_a", "score_b", "score_diff", "probability"}
    assert compared["preference"] == "b"
    assert compared["score_a"] == pytest.approx(reward_model.score(low), abs=1e-5)
    assert compared["score_diff"] == compared["score_a"] - compared["score_b"] < 0
    assert compared["confidence"] == -compared["score_diff"]
    mirrored = reward_model.compare(high, low)
    assert mirrored["preference"] == "a" and mirrored["score_diff"] == pytest.approx(compared["confidence"], abs=1e-5)
    assert mirrored["probability"] == pytest.approx(1 - compared["probability"], abs=1e-5)
    assert compared["probability"] < 0.5 < mirrored["probability"]


def test_equal_texts_compare_as_equal(reward_model):
    compared = reward_model.compare("The same.", "The same.")
    assert compared["preference"] == "a" and compared["confidence"] == 0 and compared["probability"] == 0.5


def test_equal_texts_are_run_once(reward_model, monkeypatch):
    """Two rows of a batch differ in their last bits, so that a text could lose against itself."""
    ran = []

    def with_noise(model, token_ids, *args, **options):
        ran.append(len(token_ids))
        return run_batches(model, token_ids, *args, **options) + torch.arange(len(token_ids)) * 1e-6

    monkeypatch.setattr("rlhf_ext.reward_model.model.run_batches", with_noise)
    scores = reward_model.score(["b", "a", "b", "c", "a", "b"])
    assert ran == [3] and scores[0] == scores[2] == scores[5] and scores[1] == scores[4]
    assert scores == pytest.approx([reward_model.score(text) for text in "babcab"], abs=1e-5)
    assert {pair["confidence"] for pair in reward_model.compare(list("abc"), list("abc"))} == {0.0}
    assert [row["index"] for row in reward_model.rank(["a", "a", "a"])] == [0, 1, 2]


def test_lists_are_compared_pair_by_pair_and_answers_after_their_prompt(reward_model):
    pairs = reward_model.compare(TEXTS[:3], TEXTS[3:])
    for pair, a, b in zip(pairs, TEXTS[:3], TEXTS[3:], strict=True):
        assert pair["score_diff"] == pytest.approx(reward_model.compare(a, b)["score_diff"], abs=1e-5)
    with pytest.raises(InputError, match="a has 1 and b has 2 texts"):
        reward_model.compare(["a"], ["a", "b"])
    with pytest.raises(InputError, match="one of a and b is a single text and the other a list"):
        reward_model.compare(["a"], "b")
    with pytest.raises(InputError, match=r"row 2 \(b\[1\]\): it is empty"):
        reward_model.compare(["a", "b"], ["c", ""])
    after = reward_model.compare(" Ask somebody else.", " Use a pot.", prompt="How do I boil an egg?")
    assert after == pytest.approx(reward_model.compare(TEXTS[2], TEXTS[4]), abs=1e-5)


def test_rank_and_best_of_n_agree_with_the_scores(reward_model):
    ranked = reward_model.rank(text for text in TEXTS)
    scores = reward_model.score(TEXTS)
    assert [entry["index"] for entry in ranked] == sorted(range(6), key=lambda i: -scores[i])
    assert [entry["text"] for entry in ranked] == [TEXTS[entry["index"]] for entry in ranked]
    assert [entry["score"] for entry in ranked] == sorted((entry["score"] for entry in ranked), reverse=True)
    answers = ["Use a pot.", "No idea.", "Ask somebody else, please."]
    for prompt, completions in (
        ("How do I boil an egg?", answers),
        (QUESTION, answers),
        (QUESTION, [[{"role": "assistant", "content": answer}] for answer in answers]),
    ):
        best = reward_model.best_of_n(prompt, completions)
        scored = [reward_model.score((prompt, completion)) for completion in completions]
        assert best == completions[scored.index(max(scored))]
    assert reward_model.best_of_n("p", ["same", "same"]) == "same"
    with pytest.raises(InputError, match=r"^prompt: it is None"):
        reward_model.best_of_n(None, ["a"])
    with pytest.raises(InputError, match="Pass a list of texts"):
        reward_model.rank("a")


def test_call_has_the_form_of_a_trl_reward_function(reward_model):
    prompts, completions = ["Hello ", "How do I boil an egg?"], ["there.", ""]
    rewards = reward_model(prompts=prompts, completions=completions, completion_ids=[[1], [2]], trainer_state=None)
    assert rewards[0] == pytest.approx(reward_model.score(("Hello ", "there.")), abs=1e-5)
    assert len(rewards) == 2 and all(type(reward) is float for reward in rewards)
    conversation = reward_model(prompts=[QUESTION], completions=[[{"role": "assistant", "content": "In a pot."}]])
    assert conversation == pytest.approx([reward_model.score(TEXTS[3])], abs=1e-5)
    assert reward_model(completions=["Hello."]) == pytest.approx([reward_model.score("Hello.")], abs=1e-5)
    assert isinstance(reward_model.__name__, str)
    with pytest.raises(InputError, match="1 prompts for 2 completions"):
        reward_model(prompts=["a"], completions=["b", "c"])
    with pytest.raises(InputError, match=r"^completions: it is None"):
        reward_model(prompts=["a"])


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_gives_the_same_scores(bits, lora, dtype, fresh, tokenizer, tmp_path):
    options = {"quantization_config": BitsAndBytesConfig(**QUANTIZED[bits])} if bits else {}
    model = fresh(dtype=dtype, **options)
    settings = RewardModelSettings(score_offset=0.25, temperature=1.5, max_length=100)
    saved = RewardModel(with_lora(model) if lora else model, tokenizer, settings=settings)
    scores = saved.score(TEXTS)
    saved.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert loaded.score(TEXTS) == scores
    assert isinstance(loaded.model, PeftModel) == lora
    assert loaded.temperature == 1.5 and loaded.max_length == 100
    loaded.save_pretrained(tmp_path / "again")
    assert RewardModel.from_pretrained(tmp_path / "again").score(TEXTS) == scores


def test_new_process_gives_the_same_scores(fresh, tokenizer, tmp_path):
    expected = {}
    for bits in (None, 8, 4):
        options = {"quantization_config": BitsAndBytesConfig(**QUANTIZED[bits])} if bits else {}
        saved = RewardModel(with_lora(fresh(**options)), tokenizer)
        folder = str(tmp_path / str(bits))
        saved.save_pretrained(folder)
        expected[folder] = saved.score(TEXTS)
    code = (
        "import json, sys; from rlhf_ext import RewardModel; texts = json.loads(sys.argv[1])\n"
        "print(json.dumps([RewardModel.from_pretrained(folder).score(texts) for folder in sys.argv[2:]]))"
    )
    (tmp_path / "score.py").write_text(code)
    done = forked.run(tmp_path / "score.py", json.dumps(TEXTS), *expected)
    for scores, before in zip(json.loads(done.stdout), expected.values(), strict=True):
        assert scores == pytest.approx(before, abs=1e-6)


# W x + B A x and (W + B A) x are rounded apart: in float64 far below 1e-6, in float32 a few last places above it.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_merging_the_adapter_keeps_the_scores(dtype, tolerance, fresh, tokenizer, tmp_path):
    model = RewardModel(with_lora(fresh(dtype=dtype)), tokenizer)
    before = model.score(TEXTS)
    assert before != pytest.approx(RewardModel(fresh(), tokenizer).score(TEXTS), abs=0.1)
    merged = model.merge()
    assert merged.score(TEXTS) == pytest.approx(before, abs=tolerance)
    merged.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert RewardModel.from_pretrained(tmp_path).score(TEXTS) == merged.score(TEXTS)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)  # loads without us
    assert one_by_one(plain, tokenizer, TEXTS) == pytest.approx(before, abs=1e-5)
    with pytest.raises(RewardModelError, match="no adapter to merge"):
        merged.merge()


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, "quantization_config=False"),
        ({"dtype": torch.bfloat16}, "merging into bfloat16 weights .* dtype='float32'"),
    ],
)
def test_merging_into_weights_that_round_is_refused(options, fix, fresh, tokenizer):
    with pytest.raises(RewardModelError, match=fix):
        RewardModel(with_lora(fresh(**options)), tokenizer).merge()


def test_quantization_of_training_can_be_overridden(fresh, tokenizer, tmp_path, reward_model):
    quantized = RewardModel(fresh(quantization_config=BitsAndBytesConfig(load_in_8bit=True)), tokenizer)
    RewardModel(with_lora(quantized.model), tokenizer).save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path, quantization_config=False)
    assert not any(parameter.dtype == torch.int8 for parameter in loaded.model.parameters())
    assert any(p.dtype == torch.int8 for p in RewardModel.from_pretrained(tmp_path).model.parameters())
    loaded.merge()
    quantized.save_pretrained(tmp_path / "full")
    with pytest.raises(RewardModelError, match="the checkpoint is quantized"):
        RewardModel.from_pretrained(tmp_path / "full", quantization_config=False)


def test_encoder_scores_are_the_plain_ones(tmp_path):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "how",
        "do",
        "i",
        "boil",
        "an",
        "egg",
        "?",
        "no",
        "idea",
        ".",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    tokenizer.eos_token = tokenizer.sep_token
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), num_labels=1, max_position_embeddings=16, initializer_range=0.5, **shape)
    model = BertForSequenceClassification(config).eval()
    saved = RewardModel(model, tokenizer)
    texts = ["how do i boil an egg ?", "no idea .", ("how do i boil an egg ?", " no idea ."), ("how do i", " boil .")]
    expected = []
    for text in texts:
        inputs = tokenizer("".join(text) + tokenizer.eos_token, return_tensors="pt")
        with torch.no_grad():
            expected.append(model(**inputs).logits.item())
    assert saved.score(texts) == pytest.approx(expected, abs=1e-5)
    assert saved.max_length == 16
    saved.save_pretrained(tmp_path / "model")
    loaded = RewardModel.from_pretrained(tmp_path / "model")
    assert loaded.score(texts) == saved.score(texts)
    with pytest.warns(TruncationWarning, match="1 of 1 texts are longer than max_length=16"):
        cut = loaded.score("no " * 10 + "how do i boil an egg ?")
    inputs = tokenizer("[CLS]" + "no " * 6 + "how do i boil an egg ? [SEP][SEP]", add_special_tokens=False)
    with torch.no_grad():
        assert cut == pytest.approx(model(torch.tensor([inputs["input_ids"]])).logits.item(), abs=1e-5)


def test_too_long_texts_lose_their_beginning_with_one_warning(fresh, tokenizer):
    model = RewardModel(fresh(), tokenizer, max_length=20)
    long = "word " * 30 + "How do I boil an egg?"
    with pytest.warns(TruncationWarning, match="2 of 3 texts are longer than max_length=20 tokens") as caught:
        scores = model.score([long, "Short.", ("Hello " * 5, "word " * 30 + "How do I boil an egg?")])
    assert len(caught) == 1 and caught[0].filename == __file__
    for scorer in (model, RewardModelEnsemble([model, RewardModelEnsemble([model])])):
        for call in (scorer.rank, lambda texts, scorer=scorer: scorer.best_of_n("Hello.", texts)):
            with pytest.warns(TruncationWarning, match="1 of 2 texts") as caught:
                call([long, "Short."])
            assert [warning.filename for warning in caught] == [__file__]  # once for a whole ensemble
    assert scores[0] == pytest.approx(scores[2], abs=1e-5)  # the same twenty tokens remain
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.score("Short.") == pytest.approx(scores[1], abs=1e-5)


def test_maximum_length_is_that_of_training_or_of_the_model(fresh, tokenizer):
    assert RewardModel(fresh(), tokenizer).max_length == 512  # the tokenizer's; the model takes 2048
    assert RewardModel(fresh(), tokenizer, settings=RewardModelSettings(max_length=100)).max_length == 100
    assert RewardModel(fresh(), tokenizer, settings=RewardModelSettings(max_length=9999)).max_length == 2048
    assert RewardModel(fresh(), tokenizer, max_length=7, settings=RewardModelSettings(max_length=100)).max_length == 7
    with pytest.raises(RewardModelError, match="max_length=4096: it must be at least 2 and at most 2048"):
        RewardModel(fresh(), tokenizer, max_length=4096)


@pytest.mark.parametrize("prompt", ["word " * 30, [{"role": "user", "content": "word " * 30}]])
def test_prompt_that_fills_the_context_names_its_row(prompt, fresh, tokenizer):
    model = RewardModel(fresh(), tokenizer, max_length=12)
    with pytest.raises(
        InputError, match=r"row 2 \(texts\[1\]\): its prompt alone has \d+ tokens, and a text may have 12"
    ):
        model.score([("short", "fine"), (prompt, "answer")])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "^it is None"),
        ([], "^the list of texts is empty"),
        ("", "^it is empty"),
        (["fine", "  "], r"^row 2 \(texts\[1\]\): it is empty"),
        (["fine", "<|pad|><|end|>"], r"^row 2 \(texts\[1\]\): it holds only padding or special tokens"),
        (["fine", ("prompt", "")], r"^row 2 \(texts\[1\]\): the completion is empty"),
        (["fine", 3], r"^row 2 \(texts\[1\]\): it is a int"),
    ],
)
def test_bad_text_is_refused_with_its_row(texts, message, reward_model):
    with pytest.raises(InputError, match=message):
        reward_model.score(texts)


def test_bad_batch_size_is_refused(reward_model):
    for size in (0, 2.5, "3"):
        with pytest.raises(InputError, match="batch_size must be a whole number of at least 1"):
            reward_model.score("a", batch_size=size)


def test_language_model_is_no_reward_model(model_name):
    with pytest.raises(RewardModelError, match=r"is a language model \(LlamaForCausalLM\).*recipes/reward.py"):
        RewardModel.from_pretrained(model_name)


def test_classifier_with_several_labels_is_no_reward_model(fresh, tokenizer, tmp_path):
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=3
    )
    model = LlamaForSequenceClassification(config)
    with pytest.raises(RewardModelError, match="num_labels=3"):
        RewardModel(model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RewardModelError, match="num_labels=3; a reward model has num_labels=1"):
        RewardModel.from_pretrained(tmp_path)


def test_backbone_without_a_head_is_refused(fresh, tokenizer):
    with pytest.raises(RewardModelError, match="no head named score or classifier"):
        RewardModel(fresh().model, tokenizer)


def test_checkpoint_without_its_head_is_refused(fresh, tokenizer, tmp_path):
    model = fresh()
    weights = {name: weight for name, weight in model.state_dict().items() if name != "score.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RewardModelError, match=r"the checkpoint has no reward head \(score.weight\)"):
        RewardModel.from_pretrained(tmp_path)


def test_weights_that_are_no_numbers_are_refused(fresh, tokenizer, tmp_path):
    model = fresh()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    with pytest.raises(RewardModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        RewardModel(model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RewardModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        RewardModel.from_pretrained(tmp_path)


def test_score_that_is_no_number_names_its_row(fresh, tokenizer):
    model = fresh()
    reward_model = RewardModel(model, tokenizer)
    bad = tokenizer("egg")["input_ids"][-1]
    model.model.embed_tokens.weight.data[bad] = float("inf")
    with pytest.raises(RewardModelError, match=r"row 2 \(texts\[1\]\): the score is nan"):
        reward_model.score(["fine", "egg"])


def test_tokenizer_of_another_model_is_refused(tokenizer):
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    with pytest.raises(RewardModelError, match=r"row 1 .*has token \d+, and the model knows 64"):
        RewardModel(LlamaForSequenceClassification(config), tokenizer).score(["How do I boil an egg?"])


@pytest.mark.parametrize("other", [{"hidden_size": 48}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}])
def test_adapter_of_another_base_is_refused(other, fresh, tokenizer, tmp_path):
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"])
    RewardModel(get_peft_model(fresh(), lora), tokenizer).save_pretrained(tmp_path / "adapter")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4} | other
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, **shape)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "base")
    with pytest.raises(RewardModelError, match="it was trained on another base"):
        RewardModel.from_pretrained(tmp_path / "adapter", base_model=tmp_path / "base")


@pytest.mark.parametrize("bits", [None, 8])
def test_adapter_of_a_twin_of_its_base_is_refused(bits, fresh, tokenizer, tmp_path, reward_folder, caplog):
    """Of the same shape, and not far away: a fine-tuned base, say."""
    options = {"quantization_config": BitsAndBytesConfig(**QUANTIZED[bits])} if bits else {}
    saved = RewardModel(with_lora(fresh(**options)), tokenizer)
    saved.save_pretrained(tmp_path / "adapter")
    twin = fresh()
    twin.model.norm.weight.data += 1e-3
    twin.save_pretrained(tmp_path / "twin")
    with pytest.raises(RewardModelError, match=r"trained on another base .*its weights are others; delete 'base'"):
        RewardModel.from_pretrained(tmp_path / "adapter", base_model=tmp_path / "twin")
    # In another dtype there is nothing to compare, and the base may be the one.
    caplog.clear()
    other = RewardModel.from_pretrained(tmp_path / "adapter", base_model=reward_folder, dtype="bfloat16")
    assert "it cannot be told whether it is the one of training" in caplog.text
    assert other.score(TEXTS) == pytest.approx(saved.score(TEXTS), abs=0.2)
    settings = tmp_path / "adapter/reward_model.json"
    settings.write_text(json.dumps({"base": None}))
    RewardModel.from_pretrained(tmp_path / "adapter", base_model=tmp_path / "twin")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_model.safetensors", b"no tensors", "one of its files is missing or damaged"),
        ("adapter_model.safetensors", None, r"missing or damaged \(there is no adapter_model.safetensors\)"),
        ("adapter_config.json", b"{", "one of its files is missing or damaged"),
        ("reward_model.json", b'{"dtype": "float33"}', "dtype must be null or one of PyTorch's, .* got 'float33'"),
        ("tokenizer_config.json", b"{", "its tokenizer cannot be loaded .* Copy that of training into the folder"),
    ],
)
def test_damaged_adapter_is_refused(name, content, message, fresh, tokenizer, tmp_path, reward_folder):
    folder = tmp_path / "adapter"
    RewardModel(with_lora(fresh()), tokenizer).save_pretrained(folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(RewardModelError, match=message):
        RewardModel.from_pretrained(folder, base_model=reward_folder)


def test_damaged_model_is_refused(fresh, tokenizer, tmp_path):
    RewardModel(fresh(), tokenizer).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RewardModelError, match="it cannot be loaded as a reward model"):
        RewardModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(RewardModelError, match="there is no model in this folder"):
        RewardModel.from_pretrained(tmp_path)


def test_encoder_without_a_head_is_no_classifier(tokenizer, tmp_path):
    config = BertConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RewardModelError, match=r"\(BertModel\) has no reward head"):
        RewardModel.from_pretrained(tmp_path)


def test_base_that_has_moved_can_be_named(fresh, tokenizer, tmp_path, reward_folder):
    saved = RewardModel(with_lora(fresh()), tokenizer)
    saved.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "gone/base"}))
    with pytest.raises(
        RewardModelError, match=r"gone/base: there is no such folder.* If it has moved: Name the right one as"
    ):
        RewardModel.from_pretrained(tmp_path)
    assert RewardModel.from_pretrained(tmp_path, base_model=reward_folder).score(TEXTS) == saved.score(TEXTS)


def test_adapter_of_a_language_model_is_refused(model_name, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(model_name), LoraConfig(task_type="CAUSAL_LM"))
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RewardModelError, match="task_type='CAUSAL_LM'; a reward model's has 'SEQ_CLS'"):
        RewardModel.from_pretrained(tmp_path)


def test_adapter_without_the_head_is_refused(fresh, tokenizer, tmp_path):
    from safetensors.torch import load_file, save_file

    RewardModel(with_lora(fresh()), tokenizer).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "score" not in name}
    assert len(kept) == len(weights) - 1
    save_file(kept, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RewardModelError, match="the adapter holds no reward head"):
        RewardModel.from_pretrained(tmp_path)


def test_adapter_on_a_base_that_was_never_saved_is_not_saved(tokenizer, tmp_path):
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_attention_heads=2, num_labels=1
    )
    model = with_lora(LlamaForSequenceClassification(config))
    with pytest.raises(RewardModelError, match="the adapter's base was never saved"):
        RewardModel(model, tokenizer).save_pretrained(tmp_path)


def test_adapter_trained_on_a_language_model_loads(model_name, tokenizer, tmp_path):
    """The usual case: the base has no head at all, and the adapter brings it."""
    base = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=1, dtype=torch.float32)
    saved = RewardModel(with_lora(base), tokenizer)
    saved.save_pretrained(tmp_path)
    assert RewardModel.from_pretrained(tmp_path).score(TEXTS) == saved.score(TEXTS)


def test_prompt_tuning_scores_the_last_token_of_the_text(fresh, tokenizer):
    torch.manual_seed(0)
    model = get_peft_model(fresh(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))
    scorer = RewardModel(model, tokenizer)
    assert not scorer.reuse_prompts
    assert scorer.score(TEXTS) == pytest.approx([scorer.score(text) for text in TEXTS], abs=1e-5)


def test_missing_folder_says_so():
    with pytest.raises(RewardModelError, match="no/such/folder"):
        RewardModel.from_pretrained("no/such/folder")


def test_option_without_effect_is_refused(reward_folder):
    with pytest.raises(RewardModelError, match="base_model='x' has no effect"):
        RewardModel.from_pretrained(reward_folder, base_model="x")


def test_settings_that_cannot_be_read_name_the_file(fresh, tokenizer, tmp_path):
    RewardModel(fresh(), tokenizer).save_pretrained(tmp_path)
    (tmp_path / "reward_model.json").write_text('{"temperature": -1}')
    with pytest.raises(RewardModelError, match=r"reward_model.json: temperature must be"):
        RewardModel.from_pretrained(tmp_path)
