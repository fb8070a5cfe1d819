"""What does a lab get back? Results in the recording's own format and space, and pictures. No torch
here.

outputs.py   series, maps and tables, as a BIDS derivative
pictures.py  vertices by time
surfaces.py  maps of the cortex
"""
