"""The report's pages and pictures."""
