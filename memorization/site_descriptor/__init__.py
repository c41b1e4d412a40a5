"""A descriptor trained on the site's own images to see copies of them."""
