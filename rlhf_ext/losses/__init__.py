"""Losses as pure functions of tensors: `preference` for reward models, `dpo` for pairs of log-probabilities."""
