"""Whose data do the flags name: one person's, or several people's?"""


def opened(data, beyond, folders, settings, ckpt=None):
    """The data.Subject of these folders, or of what the checkpoint `ckpt` was trained on, split as
    the flags of train.py say, `settings`; of several people: people/, if it is there."""
    if beyond:
        return beyond.people.opened(data, folders, settings, ckpt)
    subject = data.Subject(folders[0] if folders else ckpt["subject"])
    subject.split_by_names(settings)
    return subject
