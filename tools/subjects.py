"""Whose data do the flags name: one person's, or several people's?"""

import glob
import os

from .errors import fail


def folders(given):
    """What --data names, a glob perhaps: None, a folder, or a list of several by name, wherever
    they are (resumed elsewhere, it has to be the same order)."""
    found = {folder for name in given or [] for folder in glob.glob(name) or [name]}
    if len(found) < 2:
        return next(iter(found), None)
    return sorted(map(os.path.abspath, found), key=os.path.basename)


def opened(data, beyond, folder, settings, ckpt=None):
    """The data.Subject there, split as the flags of train.py say, `settings`; if the model is, or
    will be, of several people, a beyond.people.People. ckpt: the checkpoint that it is used with;
    runs of a person that it was not trained on are split as they are by themselves."""
    if isinstance(settings["data"], list):
        if beyond is None:
            fail("--data names several people: that needs the folder beyond/; name one")
        asked = folder or settings["data"]
        asked = asked if isinstance(asked, list) else [asked]
        try:
            return beyond.people.People(data, asked, settings, ckpt and ckpt["checksums"])
        except ValueError as error:
            fail(f"--data: {error}", error)
    if isinstance(folder, list):
        fail(f"--data {' '.join(folder)}: the model was trained on one person; name one")
    subject = data.Subject(folder or ckpt["subject"])
    if ckpt is None or subject.meta["checksums"] == ckpt["checksums"]:
        subject.split_by_names(settings)
    return subject
