"""Constitutional AI: a model revises its own answers by written principles, and compares them."""
