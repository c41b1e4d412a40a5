"""Copies that are planted on purpose: how many of them a filter finds."""
