"""What if there are several people? One subject of all, and whose data a model is used on.

subject.py   people as one data.Subject
channels.py  EEG channels that all have
others.py    what the others tell of a moment: two controls
own.py       what is each one's own in a closed form of all
adapt.py     the model of several, tuned to one more
"""

import glob
import os

from tools.errors import fail

from . import adapt, own, subject  # noqa: F401  (own: for beyond/)
from .subject import People


def opened(data, folders, settings, ckpt):
    """The data.Subject there, split as the flags of train.py say, `settings`; People, if the model
    is of several, or folders are. Several are sorted by name, wherever they are: resumed elsewhere,
    they must have the same order. A folder may be a glob.

    data   data.py
    ckpt   the checkpoint that they are used with, or None: the model is yet to be trained. Runs of
           a person that it was not trained on are split as they are by themselves
    """
    trained_on = settings["data"] or []
    adapted = settings.get("adapt")
    group = isinstance(trained_on, list) and (len(trained_on) > 1 or adapted)
    folders = folders or (trained_on if group else [ckpt["subject"]])
    folders = [found for name in folders for found in sorted(glob.glob(name)) or [name]]
    if ckpt is None and trained_on:
        settings["data"] = folders  # kept in checkpoints: what a glob meant
    sums = ckpt and ckpt["checksums"]  # of one, or {name: of one}
    if ckpt and not group and len(folders) > 1:
        fail(f"--data {' '.join(folders)}: the model was trained on one person; name one")
    if group or len(folders) > 1:
        known = ckpt and list(sums.values())
        try:
            each = {os.path.normpath(folder) for folder in folders}  # S1/, as a shell has it: S1
            found = People(data, sorted(each, key=os.path.basename), settings, known)
        except ValueError as error:
            fail(f"--data: {error}", error)
        if ckpt:
            found.meta["checksums"] = sums  # who is new to it has been said
        if adapted and ckpt is None:
            found.group = adapt.begin(found, settings)
        return found
    if settings.get("bad_channels"):
        fail("--bad-channels: is for several people; give --data of several, or leave it out")
    one = data.Subject(folders[0])
    if ckpt is None or one.meta["checksums"] == sums:
        one.split_by_names(settings)
    return one


def add_flags(add):
    for part in (subject, adapt):
        part.add_flags(add)
