"""Chapters: what the paper does not have, one idea a file, with its question and what it gains.

    In training                                     In sampling
    band_power      another EEG encoder             opposite_pairs       noise that cancels
    velocity        another target                  weighted_projection  neighbours follow anchors
    gaussian_prior  what smoothness alone tells     whole_runs           windows without seams
    windows         EEG around them, any length     any_vertices         parts of frames observed
    vertex_loss     errors where they show          between_frames       points between frames
    joint           the autoencoder trained along   second_order         15 calls in place of 50
    linear_gaussian  a closed form, in seconds      computed_once        the same, faster
    stacked         it and the network together     left_out             what no sample has
    auto            flags that suit a recording

network.py and drawing.py put them together. The five scripts run without this folder, as the paper
has it: train.py --preset paper, sample.py --paper. Several people as one: the folder people/.
"""

import inspect

import people
from neuroframes import LinearAutoencoder, NeuroFrames

from . import (
    any_vertices,
    auto,
    band_power,
    between_frames,
    gaussian_prior,
    joint,
    linear_gaussian,
    network,
    stacked,
    velocity,
    vertex_loss,
    weighted_projection,
    whole_runs,
    windows,
)
from .auto import TINY
from .drawing import WholeRuns
from .network import measured


def add_training_flags(add):
    """Flags of train.py; those without a default take it from its presets."""
    chapters = auto, band_power, velocity, gaussian_prior, windows, vertex_loss, joint
    for chapter in (*chapters, linear_gaussian, people):
        chapter.add_flags(add)


def add_sampling_flags(add):
    """Flags of sample.py."""
    for chapter in (any_vertices, weighted_projection, whole_runs, between_frames):
        chapter.add_flags(add)


def kinds(ckpt):
    """The classes of a checkpoint's model and autoencoder."""
    chapters = set(ckpt["config"]) - set(inspect.signature(NeuroFrames).parameters)
    model = network.Network if chapters else NeuroFrames
    if "D" in ckpt["autoencoder"]:  # trained along
        return model, joint.JointAutoencoder
    return model, LinearAutoencoder
