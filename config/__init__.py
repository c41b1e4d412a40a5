"""Hydra's YAML files; a package, so that ``pkg://config`` finds the shared groups from any folder."""
