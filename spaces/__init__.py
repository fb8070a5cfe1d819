"""Where in the brain do values lie, and how are results written and drawn there? No torch here.

space.py     vertices, voxels or parcels: the space of a subject
regions.py   atlases and masks
outputs.py   results as a BIDS derivative: series, maps and tables
formats.py   CIFTI-2, NIfTI, GIFTI and tables, written
readers.py   and read
unscored.py  results where there is no truth
page.py      report.html
pictures.py  vertices by time
surfaces.py  maps of the cortex
"""

from .outputs import Outputs, add_flags
from .unscored import Unscored

__all__ = ["Outputs", "Unscored", "add_flags"]
