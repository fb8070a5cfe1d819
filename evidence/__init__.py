"""What does a person look at, before training and after?

look.py     is the recording sound? Of a prepared subject
helped.py   was it the EEG, or luck? p of each region, of one person
spread.py   is it as sure as it may be?
"""

from . import helped, look

__all__ = ["helped", "look"]
