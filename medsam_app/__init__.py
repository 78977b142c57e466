"""Segmentation of medical volumes: interactive, in bulk, or trained on your own data.

The public names are listed in `__init__.pyi`. A module is imported when one of its names is first used, since
torch and MONAI take seconds to import.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
