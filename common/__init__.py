"""Seeds, checkpoints, errors, image sets and the plan: what every other room needs, kept small."""
