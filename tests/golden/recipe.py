"""Deterministic inputs and weights behind golden.json.

golden.json holds what the official NoiseTransfer implementation computes, in
float32 on a CPU, for the weights and inputs defined here. Nothing below depends
on how a network is written: only on the official names and shapes of its
parameters (official_state_dict_keys.json).

Entries of golden.json
  encoder_embed           embed path of the encoder on y, eval mode
  encoder_discriminate    discriminate path on (x, y) with condition z, eval mode
  generator_zero_noise    generator(x, z), every noise map zero, eval mode
  generator_sin_noise     generator(x, z), every noise map = noise_map(shape), eval mode
  ridnet                  ridnet(y)
  contrastive             loss and top-1 accuracy for q, k, queue below
  metrics                 AKLD, KS, PSNR, SSIM of (real, fake, clean) below
  blur21                  the consistency loss's Gaussian blur of x
  train_steps             the eleven logged values of three training steps
  after_3_steps           sums over some parameters, and the queue, after them
Each tensor is summarised as shape, mean, sample standard deviation (torch's
default), its first four and its last four elements in row-major (NCHW) order.

Inputs
  x = image(1, (2, 3, 32, 48));  y = x + 0.1 * (image(2, (2, 3, 32, 48)) - 0.5)
  z = unit_rows(image(3, (2, 128)) - 0.5)
  q = unit_rows(image(4, (6, 128)) - 0.5)
  k = unit_rows(q + 0.3 * (image(5, (6, 128)) - 0.5))
  queue = unit_columns(image(6, (128, 64)) - 0.5)
  clean = image(7, (1, 3, 64, 80)); r = RandomState(8)
  real = clip(clean + 0.10 * r.standard_normal(shape)); fake = clip(clean + 0.07 * r.standard_normal(shape))
  metrics: psnr and ssim compare clean with fake; ks and akld compare fake with real.

Training steps (train mode, batch 2, Adam as in the spec, noise maps = noise_map)
  encoder_q and encoder_k both start from weights("encoder"), the generator from
  weights("generator"); queue = unit_columns(RandomState(9).standard_normal((128, 4096)))
  step i = 0, 1, 2:  clean = image(100 + i, (2, 3, 32, 32)); r = RandomState(200 + i)
      noisy1 = clip(clean + 0.10 * r.standard_normal(shape))
      noisy2 = clip(image(300 + i, shape) + 0.10 * r.standard_normal(shape))

Float32 summation order differs between implementations: compare single forwards
to about 1e-4, the first training step to about 1e-3, the third to about 1e-2.
"""

import zlib

import numpy as np


def image(seed, shape):
    return np.random.RandomState(seed).random_sample(shape).astype(np.float32)


def unit_rows(a):
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def unit_columns(a):
    return a / np.linalg.norm(a, axis=0, keepdims=True)


def noise_map(shape):
    """Stand-in for the standard normal map (B, 1, H, W) of one SFT layer."""
    b, _, h, w = shape
    bb, yy, xx = np.meshgrid(np.arange(b), np.arange(h), np.arange(w), indexing="ij")
    return np.sin(0.7 * yy + 1.3 * xx + bb)[:, None].astype(np.float32)


def weights(network, shapes):
    """Official state dict of `network` ('encoder', 'generator', 'ridnet').

    shapes: {official key: shape}, from official_state_dict_keys.json.
    Each entry is drawn from its own stream, seeded by the CRC-32 of
    "network/key"; spectral-norm vectors u, v are then converged.
    """
    state = {}
    for key, shape in shapes.items():
        seed = zlib.crc32(f"{network}/{key}".encode())
        a = np.random.RandomState(seed).standard_normal(tuple(shape))
        if key.endswith(("weight_u", "weight_v")):
            a = a / np.linalg.norm(a)
        elif key.endswith("norm.weight") or ("inorm" in key and key.endswith(".weight")):
            a = 1 + 0.1 * a
        elif key.endswith("bias"):
            a = 0.1 * a
        else:
            a = a / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 1)
        state[key] = a.astype(np.float32)
    for key in [k for k in state if k.endswith("weight_orig")]:
        base = key[: -len("_orig")]
        w = state[key].astype(np.float64)
        if "tconv2d" in key:  # transposed convolution: output channels come second
            w = w.transpose(1, 0, 2, 3)
        w = w.reshape(w.shape[0], -1)
        u = state[base + "_u"].astype(np.float64)
        for _ in range(200):
            v = w.T @ u
            v /= np.linalg.norm(v)
            u = w @ v
            u /= np.linalg.norm(u)
        state[base + "_u"], state[base + "_v"] = u.astype(np.float32), v.astype(np.float32)
    return state
