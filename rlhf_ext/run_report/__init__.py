"""The report that a training run leaves behind: what ran, what changed, and what to look into."""
