"""TRL trainers with one thing added each; configuration and trainer live together."""
