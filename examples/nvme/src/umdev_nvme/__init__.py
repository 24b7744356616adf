"""An NVMe controller for the stock NVMe drivers, as a umdev device model.

Everywhere in this package "section" is one of the NVM Express Base Specification, revision 1.4.
"""

from .controller import Nvme
from .parent import Nvme1G, Nvme64M, parent

__all__ = ["Nvme", "Nvme1G", "Nvme64M", "parent"]
