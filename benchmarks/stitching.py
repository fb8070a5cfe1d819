"""How should windows become a whole run? Four ways on the test runs, direct and with anchors.

    python benchmarks/stitching.py --ckpt out/ckpt.pt --gap 9

independent   side by side, none knows of its neighbours
averaged      overlapping; each is drawn by itself, and they are averaged when done
continued     one after the other: half of the overlap with the one before is held like observed frames, the other
              half, which that one drew without seeing what comes after it, is drawn again
blended       sample.py's: all at once, averaged at every step where they overlap

Seam: the samples' mean squared jump from frame to frame where windows begin, over that elsewhere. 1: nothing shows.
"""
import argparse
import functools
import os
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import data  # noqa: E402
import sample as sampling  # noqa: E402
from neuroframes import Observation, sample  # noqa: E402
from tools.errors import fail, script  # noqa: E402


@script
@torch.no_grad()
def main(argv=None):
    p = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--ckpt", default="out/ckpt.pt", help="checkpoint of train.py, trained with --prior gaussian")
    p.add_argument("--gap", type=int, default=9, help="of --frames frames every gap-th is observed")
    p.add_argument("--samples", type=int, default=8, help="samples averaged, an even number")
    a = p.parse_args(argv)
    ckpt, model, autoencoder, normaliser = sampling.load(a.ckpt, torch.device("cpu"))
    if a.samples % 2 or model.prior is None:
        fail(f"--samples {a.samples}, --ckpt {a.ckpt}: expected an even number, and a model trained with --prior gaussian")
    settings, subject = ckpt["settings"], data.Subject(ckpt["subject"])
    K, S, context = settings["frames"], a.samples, settings["context"]
    window = K * (3 if settings["vary"] else 1)
    segments = subject.segments("test")
    T = min(high - low for low, high in segments)
    t = np.stack([np.arange(low, low + T) for low, _ in segments])                             # [B,T] runs cut to one length
    x = torch.from_numpy(normaliser.zscore(subject.fmri[t]))                                    # [B,T,V]
    valid = torch.from_numpy(normaliser.valid)
    y, B = autoencoder.encode(x), len(segments)                                                 # [B,T,d]
    h = torch.stack([sampling.encode_eeg(model, subject, normaliser, [(low, low + T)], 1, "cpu") for low, _ in segments])
    V = x.shape[-1]
    observation = Observation(autoencoder, torch.ones(1, V, dtype=torch.bool), x[0, :1])        # kinds: 0 whole, -1 unseen

    modulations = functools.lru_cache(1)(lambda n: model.dit.modulations(torch.tensor([n])))

    def draw(shape, eps, project, generator):
        return sample(eps, shape, model.schedule, project=project, reuse_eps=False, generator=generator, antithetic=True)

    def one_by_one(w, kinds, generator, continued):
        """Windows one after the other -> [SB,T,d]."""
        parts, z, end = [], torch.zeros(S * B, T, y.shape[-1]), 0
        for start, index in zip(w.start.tolist(), w.index):
            held = max(0, end - (window // 2) // 2 - start) if continued and start else 0
            known, kind = y[:, index].repeat(S, 1, 1), [0] * held + kinds[index.numpy()][held:].tolist()
            known[:, :held], end = z[:, index[:held]], start + w.K
            e = torch.arange(start - context, start + w.K + context).clamp(0, T - 1)
            eps = model.eps_model(h[:, e].transpose(1, 2), (e - start).float().expand(B, -1), w.K, modulations)
            project = observation.projection(kind, model.prior, torch.arange(w.K))
            parts.append(draw((S * B, w.K, y.shape[-1]), eps, lambda z0, abar: project(z0, known, abar), generator))
            z[:, index] = parts[-1]
        return z if continued else w.blend(torch.stack(parts, 1))

    print(f"{'':14}{'direct: MSE':>12}{'one sample':>12}{'r':>8}{'seam':>8}{f'gap {a.gap}: MSE':>14}{'one sample':>12}{'r':>8}{'seam':>8}")
    for way in ("independent", "averaged", "continued", "blended"):
        row = f"{way:14}"
        for gap in (None, a.gap):
            kinds = np.full(T, -1) if gap is None else np.where(np.arange(T) % K % gap == 0, 0, -1)
            w, generator = sampling.Windows(T, window, 0 if way == "independent" else window // 2), torch.Generator().manual_seed(0)
            if way in ("independent", "blended"):
                eps = w.eps_model(model, h, context, S, 16)
                z = draw((S * B, T, y.shape[-1]), eps, w.projection(observation, model.prior, kinds, y), generator)
            else:
                z = one_by_one(w, kinds, generator, way == "continued")
            jump = (z * autoencoder.latent_scale).diff(dim=1).square().mean((0, 2))
            begin = torch.zeros(T - 1, dtype=torch.bool)
            begin[(w.start[:-1] + w.K - (window // 2) // 2 if way == "continued" else w.start[1:]) - 1] = True
            free, z = torch.from_numpy(kinds < 0), z.unflatten(0, (S, B))
            mean, one = (sampling.frame_scores(autoencoder.decode(u[:, free])[..., valid], x[:, free][..., valid]).mean((0, 1))
                         for u in (z.mean(0), z[0]))
            row += f"{mean[0]:{12 if gap is None else 14}.3f}{one[0]:12.3f}{mean[1]:8.3f}{jump[begin].mean() / jump[~begin].mean():8.2f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
