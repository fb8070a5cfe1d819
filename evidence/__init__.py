"""What a reviewer asks of results: was it the EEG, or luck?

helped.py   p of each region, of one person
"""

from . import helped

__all__ = ["helped"]
