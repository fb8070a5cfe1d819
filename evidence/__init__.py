"""What does a person look at, before training and after?

look.py         is the recording sound? Of a prepared subject
helped.py       was it the EEG, or luck? p of each region, of one person
calibration.py  how sure is it, and is it right about that?
spread.py       the same in words
table.py        how good is it, beside its controls?
people.py       is it so in everyone?
"""
