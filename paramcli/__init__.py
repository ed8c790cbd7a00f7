"""paramcli: torch's parametrizations on a checkpoint on disk, without the model's code.

Importing this package is cheap; the functions of its public interface load torch when first used.
"""

from __future__ import annotations

__version__ = "0.1.0"
