"""How many tokens a model takes."""

from torch import nn

TABLES = ("position_embeddings", "wpe", "embed_positions")  # what models call their table of learned positions


def context_length(module: nn.Module) -> int | None:
    """Return how many tokens a Transformers model takes, None where it does not say.

    A table of positions may have rows that no token gets: RoBERTa numbers its positions from `padding_idx` + 1 on, so
    that of 514 rows 512 serve, and OPT from 2 on.

    Args:
        module: The model.
    """
    tables = [
        part
        for name, part in module.named_modules()
        if name.rpartition(".")[2] in TABLES and isinstance(part, nn.Embedding)
    ]
    if not tables:
        return getattr(module.config.get_text_config(), "max_position_embeddings", None)
    unused = getattr(tables[0], "offset", 0) if tables[0].padding_idx is None else tables[0].padding_idx + 1
    return tables[0].num_embeddings - unused
