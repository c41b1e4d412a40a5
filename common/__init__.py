"""What every other room needs, kept small: errors, seeds, checkpoints, the plan, and what generators share."""
