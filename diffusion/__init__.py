"""Diffusion models shaped by nnU-Net's plan: a generator in pixels (ddpm) and one in an autoencoder's latents (ldm)."""
