"""How much of one person, and how much of all?

A closed form of all people has seen much, and has one number for what people differ in: how much
the EEG tells, and how soon BOLD follows. A closed form of one person has seen little, and is right
about that. So both are fitted, and person k gets

    m = a_k m_all + c_k m_own,      (a_k, c_k) = argmin of |z - a m_all - c m_own|^2

over that person's training frames and all latents, with m as it is of runs that neither was fitted
to. These are two numbers a person, so that few minutes tell them. Penalties hold both back, so that
together they may be more than 1; and where pooling is of no use, a is near 0. What is fitted to one
person alone sees that person's EEG as it was before it was aligned: aligning mixes channels.

Somebody new has no part: m is m_all. With --adapt (people/adapt) the group's closed form stays as
it is, and a part is fitted to the minutes in the same way.

Seam    m, what beyond/linear_gaussian expects
Source  stacked regressions (Breiman 1996); a part for all and one for each: Evgeniou and Pontil
        2004, Daume 2007
Gain    six synthetic people, direct: MSE 0.837 -> 0.795 with ten minutes of each (alone: 0.830),
        0.757 -> 0.710 with an hour of each (alone: 0.721)
"""

import copy

import numpy as np
import torch
from torch import nn


class Own(nn.Module):
    """What each of several people has of their own, by the numbers that People gives them.

    linear  of all: a beyond.linear_gaussian.LinearGaussian that is yet to be fitted
    """

    def __init__(self, linear, members):
        super().__init__()
        self.each = nn.ModuleList([copy.deepcopy(linear) for _ in range(members)])
        self.register_buffer("shares", torch.tensor([[1.0, 0.0]]).repeat(members, 1))  # a, c

    def fit(self, m, subject, read, segments, z):
        """To latents z [T,d] of training segments [low, high), where that of all expects m [T,d].
        Returns what both together miss, [t,d] of each segment."""
        lengths = [high - low for low, high in segments]
        parts = list(zip(segments, m.split(lengths), z.split(lengths)))
        missed = []
        for person in subject.people:
            mine = [part for part in parts if subject.person(part[0][0]) == person]
            if not mine:  # who is left out has no part
                continue
            runs, of_all, true = zip(*mine)
            z_k = torch.cat(true)  # [t,d]
            m_own, _ = self.each[person.number].fit(as_it_was(subject, person, read), runs, z_k)
            both = torch.stack([torch.cat(of_all), m_own], -1)  # [t,d,2]
            u = both.flatten(0, 1).double()  # [t d,2]
            shares = torch.linalg.lstsq(u, z_k.double().reshape(-1, 1)).solution[:, 0]
            self.shares[person.number] = shares
            left = z_k - both @ shares.to(both)  # [t,d]
            missed += left.split([len(run) for run in true])
        return missed


def as_it_was(subject, person, read):
    """read: rows -> EEG [rows,C,W], as it was before it was aligned: times C^1/2."""
    undo = torch.from_numpy(np.linalg.inv(subject.align(person)))  # [C,C]

    def found(rows):
        eeg = read(rows)  # [rows,C,W]
        return undo.to(eeg) @ eeg

    return found


def expected(model, subject, read, low, high, late=0):
    """m [high - low,d] of a stretch: what the closed form of a beyond.network.Network expects."""
    m = model.linear.expected(read, low, high, late)
    if model.own is None:  # of one person
        return m
    person = subject.person(low)
    if person.number is None:  # somebody new
        return m
    a, c = model.own.shares[person.number]
    if c == 0:  # who was left out has a part that was never fitted
        return a * m
    own = model.own.each[person.number]
    return a * m + c * own.expected(as_it_was(subject, person, read), low, high, late)


@torch.no_grad()
def fit(a, model, subject, read, segments, z):
    """The closed form of a Network, to latents z [T,d] of training segments [low, high). With
    --adapt that of all stays as the group has it. Returns what was found, in words."""
    if a.adapt:
        found = "closed form of the group"
        m = torch.cat([model.linear.expected(read, *run).cpu() for run in segments])  # [T,d]
    else:
        m, found = model.linear.fit(read, segments, z)  # [T,d] of runs left out
    if model.own is None:
        return found
    missed = model.own.fit(m, subject, read, segments, z)
    model.linear.residual.fit(missed)
    told = 1 - torch.cat(missed).square().mean() / z.square().mean()
    shares = ", ".join(f"{of_all:.2f} + {own:.2f}" for of_all, own in model.own.shares.tolist())
    return f"{found}; with a part of each person's own {told:.1%} (shares of all + own: {shares})"
