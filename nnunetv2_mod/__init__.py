"""nnU-Net 2.8 as a library: the only room that imports it. No fork, no shared folders, no spawned pools.

What it offers stands in ``__init__.pyi`` and is loaded on first use: nnU-Net takes many seconds to import, and neither
a dry run nor a refused setting should wait for it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
