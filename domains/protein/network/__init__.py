"""The Proteina network family."""

from xdistill.domains.protein.network.config import ProteinaConfig
from xdistill.domains.protein.network.denoiser import Proteina, straightforward

__all__ = ["Proteina", "ProteinaConfig", "straightforward"]
