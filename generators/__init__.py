"""What the experiments ask of a generator, and how a generator is found by its name."""
