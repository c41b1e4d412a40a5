"""Images as feature vectors: embedders, their cache, nearest neighbours, and distances between image sets."""
