"""The interface of a generator, and how its adapter is found. The generators themselves are rooms of their own."""
