"""The Proteina network family."""

from xdistill.domains.protein.network.config import ProteinaConfig
from xdistill.domains.protein.network.denoiser import Proteina

__all__ = ["Proteina", "ProteinaConfig"]
