"""A generator that no file of the product knows: an adapter, and a YAML in ``generator/`` that names it."""
