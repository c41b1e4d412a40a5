"""A plan-shaped StyleGAN2 with DiffAugment, written from the papers (StyleGAN2: Karras et al. 2020; DiffAugment: Zhao
et al. 2020) in plain PyTorch: no compiled extensions."""
