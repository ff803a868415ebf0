"""Tiny randomly initialised encoders of several families, as the checkpoints that one finds: without a reward head."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    EuroBertConfig,
    EuroBertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "how", "do", "i", "boil", "an", "egg", "no", "idea", "in", "a", "pot"]
POSITIONS = 32
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
COMMON = {"vocab_size": len(WORDS), "pad_token_id": 0, "initializer_range": 0.5}
ENCODERS = {
    "bert": lambda: BertModel(BertConfig(**COMMON, **SHAPE, max_position_embeddings=POSITIONS)),
    # As a masked language model it has no pooler either.
    "bert-mlm": lambda: BertForMaskedLM(BertConfig(**COMMON, **SHAPE, max_position_embeddings=POSITIONS)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(
            **COMMON, dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=POSITIONS, dropout=0.0
        )
    ),
    "deberta": lambda: DebertaV2Model(
        DebertaV2Config(**COMMON, **SHAPE, max_position_embeddings=POSITIONS, relative_attention=True)
    ),
    # By default it scores every token and takes the mean.
    "eurobert": lambda: EuroBertModel(
        EuroBertConfig(**COMMON, **SHAPE, max_position_embeddings=POSITIONS, bos_token_id=2, eos_token_id=3)
    ),
    # RoBERTa's positions begin after that of the padding token.
    "roberta": lambda: RobertaModel(RobertaConfig(**COMMON, **SHAPE, max_position_embeddings=POSITIONS + 1)),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(
            **COMMON, **SHAPE, max_position_embeddings=POSITIONS, cls_token_id=2, sep_token_id=3, bos_token_id=2
        )
    ),
}


def tokenizer(**options):
    """A tokenizer of words; like BERT's it has no end-of-sequence token."""
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"} | options
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def save_encoder(name, folder):
    """Save an encoder with its tokenizer; return the folder."""
    torch.manual_seed(0)
    ENCODERS[name]().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)
