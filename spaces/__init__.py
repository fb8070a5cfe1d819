"""Where in the brain do values lie, and how are results written and drawn there? No torch here.

space.py     vertices, voxels or parcels: the space of a subject
regions.py   atlases and masks
outputs.py   results as a BIDS derivative: series, maps and tables
formats.py   CIFTI-2, NIfTI, GIFTI and tables
pictures.py  vertices by time
surfaces.py  maps of the cortex
"""
