"""Segmentation metrics, statistics over folds and sites, and the report: how good each model is, how sure that is."""
