"""What if not everyone has the same EEG channels? Those that all have are used.

    train.py --data S1 S2 S3 --bad-channels intersect

Caps differ, and so do the channels that were bad and left out. Which is which is told by the names
in subject.json. Scales, alignment and model are of the channels that all have, in the order of the
first person. The checkpoint keeps their names: it can be used on whoever has these, among others
and in any order.

Seam    the subject
Source  ours
"""


def choose(people, settings):
    """Set `places` of each, those of the EEG channels that are used: all; or with --bad-channels
    those that the model knows, or if it is yet to be trained, those that all have."""
    for person in people:
        person.places = range(person.eeg.shape[1])
    if not settings.get("bad_channels"):
        return

    trained = settings.get("channels")
    names = trained or named(people[0])
    for person in people:
        own = named(person)
        missing = [name for name in names if name not in own]
        names = [name for name in names if name in own]
        if not names or (trained and missing):
            raise ValueError(
                f"{person.folder}: its EEG has no {', '.join(missing) or 'names of channels'}; "
                f"it has {', '.join(own) or 'none'}; expected all that the model was trained with, "
                "or to train with one that all have; leave it out, or prepare it anew"
            )

    settings["channels"] = names  # kept in checkpoints
    for person in people:
        person.places = [named(person).index(name) for name in names]
        person.meta["eeg"]["channels"] = names


def named(person):
    return person.meta["eeg"].get("channels") or []


def way_out(one, other):
    """What an error says of two people's names of channels, which differ."""
    if not one or not other:
        return ""
    some = ", ".join(sorted({*one} ^ {*other})) or "none, their order differs"
    return f", or train with --bad-channels intersect; of only one of them: {some}"
