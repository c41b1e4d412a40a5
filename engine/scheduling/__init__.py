"""Which stage starts when, and where: the order, the placement, a simulation and its benchmark."""
