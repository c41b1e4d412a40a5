"""Which stage starts when, and where: the order, the placement and a simulation."""
