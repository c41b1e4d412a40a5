"""Runs a graph of stages: what is done, what is ready, where it runs. It knows no experiment."""
