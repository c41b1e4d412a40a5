"""A copy laid over its original: find the transform, align, and ask how much of the image agrees, at which detail."""
