"""Ridge regression from EEG band power to BOLD: the classical model, and hard to beat on little data.

    python benchmarks/ridge.py --data out/synthetic
    python benchmarks/ridge.py --data subjects/rest --no-validation

Features: log power of every channel in 15 bands up to 50 Hz, at lags -5 to 5 frames. The penalty
is chosen on the validation run. --no-validation then refits on all training runs, as the flag of the
same name does for train.py. Scores are those of sample.py: frames of the test runs, z-scores.
"""
import argparse
import os
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import data  # noqa: E402
from sample import METRICS, Scores, frame_scores  # noqa: E402

PENALTIES = [1e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5]

def band_power(subject, normaliser, bands=15, highest=50.0, block=200):
    """Log band power [T, C * bands] of every frame's EEG window."""
    W = subject.eeg.shape[2]
    top = min(highest * subject.tr, W // 2)  # cycles a window
    edges = np.unique(np.linspace(1, top + 1, bands + 1).round().astype(int))
    features = []
    for i in range(0, len(subject.eeg), block):
        spectrum = np.abs(np.fft.rfft(normaliser.eeg(subject.eeg[i: i + block]) * np.hanning(W))) ** 2
        power = np.stack([spectrum[..., a:b].mean(-1) for a, b in zip(edges[:-1], edges[1:])], -1)
        features.append(np.log(power + 1e-12).reshape(len(power), -1))
    return np.concatenate(features)

def lagged(features, segments, lags=range(-5, 6)):
    """[frames, features * lags] of all segments; beyond a segment's border its last frame is repeated."""
    index = np.concatenate([np.clip(np.arange(a, b)[:, None] + np.array(lags), a, b - 1) for a, b in segments])
    return features[index].reshape(len(index), -1)

def ridge(X, Y, X_new, penalties):
    """{penalty: prediction for X_new}; solved on the smaller of the two sides, once for all penalties."""
    mean, std = X.mean(0), X.std(0) + 1e-9
    X, X_new, Y_mean = (X - mean) / std, (X_new - mean) / std, Y.mean(0)
    if len(X) < X.shape[1]:
        power, U = np.linalg.eigh(X @ X.T)
        left, right = X_new @ (X.T @ U), U.T @ (Y - Y_mean)
    else:
        power, U = np.linalg.eigh(X.T @ X)
        left, right = X_new @ U, U.T @ (X.T @ (Y - Y_mean))
    return {p: left @ (right / (power[:, None] + p)) + Y_mean for p in penalties}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="prepared subject")
    p.add_argument("--no-validation", action="store_true", help="refit on all training runs once the penalty is chosen")
    a = p.parse_args()
    subject = data.Subject(a.data)

    def fit_and_predict(fitted_on, predicted, penalties):
        """{penalty: prediction}, and the truth, in z-scores with the statistics of the frames fitted on."""
        normaliser = data.Normaliser.measure(subject, fitted_on)
        features = band_power(subject, normaliser)
        Y, truth = (np.concatenate([normaliser.zscore(subject.fmri[i:j]) for i, j in part])
                    for part in (fitted_on, predicted))
        return ridge(lagged(features, fitted_on), Y, lagged(features, predicted), penalties), truth, normaliser

    found, truth, normaliser = fit_and_predict(subject.segments("train"), subject.segments("val"), PENALTIES)
    valid = normaliser.valid
    r = {p: frame_scores(torch.from_numpy(x[:, valid]), torch.from_numpy(truth[:, valid]))[:, 1].mean().item()
         for p, x in found.items()}
    best = max(r, key=r.get)
    print("validation r by penalty: " + ", ".join(f"{p:g} {value:.3f}" for p, value in r.items()))

    found, truth, normaliser = fit_and_predict(
        subject.segments("train", validation=not a.no_validation), subject.segments("test"), [best])
    scores = Scores({"whole": normaliser.valid, **{k: m & normaliser.valid for k, m in subject.rois.items()}}, np.zeros((1, 1), bool))
    scores.add("ridge", torch.from_numpy(found[best]), torch.from_numpy(truth), np.zeros(len(truth), int))
    for region, row in scores.summary()["ridge"].items():
        print(f"{region:16} " + "  ".join(f"{m} {row[m]['mean']:.3f}" for m in METRICS))

if __name__ == "__main__":
    main()
