"""Evaluation: statistics on arrays, the metrics of reward models, figures, and one self-contained HTML page."""
