"""Distributed Synthetic Learning (Chang et al. 2023): a generator at the hub, a discriminator at every site."""
