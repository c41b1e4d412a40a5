"""The measures of leakage: what synthetic images say about the images that they were trained on."""
